"""Which of a bundle's engines can run here, decided from the manifest alone, before anything is deserialized."""

from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError
from saishiki.runtime.manifest import EngineEntry, ModuleEntry, Precision
from saishiki.runtime.signature import Profile, Sizes

PORTABLE = "portable"
PORTABLE_TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")
"""What a TensorRT-RTX engine built without naming a compute capability runs on, by the mask in its header."""

RTX_TARGETS = ("sm75", *PORTABLE_TARGETS)
"""What TensorRT-RTX builds for at all; H100 and H200 are not among them."""


def check_engine(entry: EngineEntry, *, builder_version: str, target: str, bundle: Bundle) -> None:
    """Raises ``BackendError`` where an engine cannot run here: naming the field, both values and how to rebuild.

    Args:
        builder_version: of the installed TensorRT; an engine runs on the version that built it.
        target: this GPU's compute capability, such as ``sm89``.
    """
    graph = _module_of(entry, bundle).graphs.get(entry.key.precision)
    weights = None if graph is None else (graph.weights or graph.graph).sha256
    comparisons = {
        "weights": (weights, "the bundle has"),
        "graph": (graph and graph.graph.sha256, "the bundle has"),
        "builder_version": (builder_version, "installed is"),
    }
    for field, (here, whose) in comparisons.items():
        there = getattr(entry.key, field)
        if there != here:
            raise BackendError(_mismatch(entry, bundle, f"its {field} is {there}, {whose} {here}; rebuild it with:"))
    if not _fits(entry, target):
        raise BackendError(_mismatch(entry, bundle, _other_target(entry, target)))


def _other_target(entry: EngineEntry, target: str) -> str:
    difference = f"its target is {entry.target}, this GPU is {target}"
    if entry.backend != "tensorrt-rtx":
        return f"{difference}; rebuild it on this machine with:"
    if target not in RTX_TARGETS:
        return f"{difference}, for which TensorRT-RTX builds nothing; use another backend, or another target in:"
    return f"{difference}; rebuild it (for this GPU, add --sm {target.removeprefix('sm')}) with:"


def _mismatch(entry: EngineEntry, bundle: Bundle, difference: str) -> str:
    return f"{bundle.path}: {entry.file.path} cannot run here: {difference} {bundle.manifest.export_command}"


def _module_of(entry: EngineEntry, bundle: Bundle) -> ModuleEntry:
    return next(module for module in bundle.manifest.modules.values() if entry in module.engines)


def _fits(entry: EngineEntry, target: str) -> bool:
    return entry.target == target or (entry.target == PORTABLE and target in PORTABLE_TARGETS)


def choose_engine(
    bundle: Bundle, module: str, *, backend: str, precision: Precision, builder_version: str, target: str
) -> EngineEntry:
    """The engine of a module that fits best; it may still not run here, which :func:`check_engine` tells.

    Raises ``BackendError`` where the bundle has no engine of this backend and precision at all.
    """
    engines = bundle.module(module).engines
    own = [engine for engine in engines if engine.backend == backend and engine.key.precision == precision]
    if not own:
        found = ", ".join(f"{e.backend} {e.target} {e.key.precision}" for e in engines) or "no engine at all"
        raise BackendError(
            f"{bundle.path}: no {backend} engine of {module} in {precision}, it has {found}; "
            f"export again with such a target: {bundle.manifest.export_command}"
        )

    def merit(engine: EngineEntry) -> tuple[bool, bool, bool]:
        return _fits(engine, target), engine.key.builder_version == builder_version, engine.target == target

    return max(own, key=merit)


def choose_profile(profiles: tuple[Profile, ...], sizes: Sizes) -> int:
    """The number of the profile that holds the sizes, at best one that is tuned for them; raises ``ValueError``."""
    holding = [i for i, profile in enumerate(profiles) if profile.holds(sizes)]
    if not holding:
        choices = "; ".join(map(str, profiles))
        raise ValueError(f"no profile of the engine holds {dict(sizes)}; it was built for: {choices}")
    return next((i for i in holding if dict(profiles[i].opt) == dict(sizes)), holding[0])

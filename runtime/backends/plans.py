"""The plans of a bundle: found by the manifest, checked, and read with their weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError, BundleError
from saishiki.runtime.manifest import EngineEntry, Precision
from saishiki.runtime.plan import Plan, plan_from_json
from saishiki.runtime.signature import Array, Signature
from saishiki.runtime.vectors import StoredVectors

BACKEND = "cuda"
"""What the manifest calls plans."""


def find_plan(bundle: Bundle, module: str, precision: Precision) -> EngineEntry:
    """The entry of a module's plan; raises ``BackendError`` where there is none, or one of another graph.

    Reads no file.
    """
    entry = bundle.module(module)
    plans = [engine for engine in entry.engines if engine.backend == BACKEND]
    fitting = [engine for engine in plans if engine.key.precision == precision]
    if not fitting:
        found = ", ".join(engine.key.precision for engine in plans)
        has = f"only one in {found}" if found else "none at all"
        raise BackendError(
            f"{bundle.path}: no plan of {module} in {precision}, {has}; "
            f"export again with cuda among the targets: {bundle.manifest.export_command}"
        )
    graph = entry.graphs[precision]
    if fitting[0].key.graph != graph.graph.sha256:
        raise BackendError(
            f"{bundle.path}: {fitting[0].file.path} was made of another graph (its graph is {fitting[0].key.graph}, "
            f"the bundle has {graph.graph.sha256}); make it again with: {bundle.manifest.export_command}"
        )
    return fitting[0]


@dataclass(frozen=True)
class LoadedPlan:
    """A plan, the module's signature, and its weights by name, in host memory."""

    plan: Plan
    signature: Signature
    weights: Mapping[str, Array]


def read_plan(bundle: Bundle, module: str, precision: Precision) -> Plan:
    """A module's plan without its weights; raises as :func:`load_plan` does."""
    path = bundle.file(find_plan(bundle, module, precision).file)
    return plan_from_json(path.read_bytes(), source=str(path), signature=bundle.module(module).signature)


def load_plan(bundle: Bundle, module: str, precision: Precision) -> LoadedPlan:
    """Reads a module's plan; raises ``BundleError`` where a file is missing, damaged or of another version."""
    engine, plan = find_plan(bundle, module, precision), read_plan(bundle, module, precision)
    if engine.weights is None:
        raise BundleError(f"{bundle.path}: the plan of {module} has no file of weights; export again")
    stored = StoredVectors(bundle.file(engine.weights))
    weights = {name: stored[f"{module}/{name}"] for name in plan.weights if f"{module}/{name}" in stored}
    for name, spec in plan.weights.items():
        if name not in weights or (weights[name].shape, weights[name].dtype.name) != (spec.shape, spec.dtype):
            raise BundleError(
                f"{bundle.path}: {engine.weights.path} lacks {module}/{name} as the plan has it; export again"
            )
    return LoadedPlan(plan, bundle.module(module).signature, weights)

"""Comparing a bundle with what the PyTorch reference computed: stored vectors in, a certificate out.

``export-engines`` uses it once, to certify; ``saishiki verify`` uses it again on the user's machine. Errors are
relative L2 errors against the reference in fp32. Budgets were set at export from what fp16 rounding costs the
reference itself.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from saishiki.runtime.backends.protocol import Backend, DenoisingLoop, Module, OnStep
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BundleError
from saishiki.runtime.manifest import Certificate, ImageParity, ParityRow, Precision
from saishiki.runtime.pipelines import load_pipeline
from saishiki.runtime.signature import Array, Signature

Vectors = Mapping[str, Array]
OnResult = Callable[[ParityRow | ImageParity], None]


def relative_error(got: Array, want: Array) -> float:
    """``|got - want| / |want|`` in the L2 norm, in fp64; NaN where anything is not finite, or the shapes differ."""
    if got.shape != want.shape:
        return math.nan
    difference = got.astype(np.float64) - want.astype(np.float64)
    if not np.isfinite(difference).all():
        return math.nan
    return float(np.linalg.norm(difference)) / max(float(np.linalg.norm(want.astype(np.float64))), 1e-12)


def psnr_db(got: Array, want: Array, *, peak: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB: 200 where the two are equal, NaN where anything is not finite."""
    mse = float(np.mean((got.astype(np.float64) - want.astype(np.float64)) ** 2))
    if not math.isfinite(mse):
        return math.nan
    return min(200.0, 10 * math.log10(peak**2 / mse)) if mse > 0 else 200.0


def group(vectors: Vectors, prefix: str) -> dict[str, Array]:
    """The tensors whose names begin with ``prefix/``, without it; raises ``BundleError`` where there are none."""
    begin = prefix + "/"
    found = {name.removeprefix(begin): vectors[name] for name in vectors if name.startswith(begin)}
    if not found:
        raise BundleError(f"the parity file holds no vectors {begin}...; export again")
    return found


def measure_row(row: ParityRow, module: Module, vectors: Vectors) -> ParityRow:
    """The row with the module's error against the stored outputs."""
    outputs = module(**group(vectors, f"{row.vectors}/in"))
    wanted = group(vectors, f"{row.vectors}/out")
    # numpy's max keeps a NaN, which Python's may lose.
    error = float(np.max([relative_error(outputs[name], want) for name, want in wanted.items()]))
    max_abs = float(np.max([_max_abs(outputs[name], want) for name, want in wanted.items()]))
    return replace(row, error=error, max_abs=max_abs, passed=bool(error <= row.budget))


def _max_abs(got: Array, want: Array) -> float:
    return float(np.abs(got - want).max()) if got.shape == want.shape else math.nan


def measure_image(image: ImageParity, bundle: Bundle, backend: Backend, vectors: Vectors) -> ImageParity:
    """The image row with the errors of a whole run against the stored states and image."""
    stored = group(vectors, image.vectors)
    pipeline = load_pipeline(bundle, backend, image.precision)
    states: list[Array] = []

    def keep(_: int, x: Array | None) -> None:
        if x is not None:
            states.append(x.copy())

    result = pipeline.replay(group(stored, "inputs"), image.settings, keep)

    errors = tuple(relative_error(x, want) for x, want in zip(states, stored["states"], strict=False))
    got, want = result.clip(-1, 1), stored["image"].clip(-1, 1)
    psnr = psnr_db(got, want)
    steps_passed = all(error <= budget for error, budget in zip(errors, image.step_budgets, strict=False))
    return replace(
        image,
        step_errors=errors,
        psnr_db=psnr,
        max_abs_levels=_levels(got, want),
        passed=bool(steps_passed and psnr >= image.least_psnr_db),
    )


def _levels(got: Array, want: Array) -> int:
    difference = np.abs(got - want).max()
    return int(np.ceil(difference * 127.5 - 1e-3)) if np.isfinite(difference) else 255


class _OneAtATime:
    """A backend that holds one module at a time, so that a large bundle is measured in the memory of its largest one.

    What it loads is loaded again where another module was called in between.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._held: tuple[str, Precision, Module] | None = None

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def default_precision(self) -> Precision:
        return self._backend.default_precision

    def check(self, bundle: Bundle, module: str, precision: Precision) -> None:
        self._backend.check(bundle, module, precision)

    def load(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        return _Called(self, bundle, module, precision)

    def loaded(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        if self._held is None or self._held[:2] != (module, precision):
            self._held = None
            self._held = module, precision, self._backend.load(bundle, module, precision)
        return self._held[2]

    def run_loop(self, denoiser: Module, loop: DenoisingLoop, on_step: OnStep) -> Array:
        module = denoiser.loaded() if isinstance(denoiser, _Called) else denoiser
        return self._backend.run_loop(module, loop, on_step)

    def close(self) -> None:
        self._held = None


@dataclass(frozen=True)
class _Called:
    """A module that is loaded when it is called."""

    backend: _OneAtATime
    bundle: Bundle
    name: str
    precision: Precision

    @property
    def signature(self) -> Signature:
        return self.bundle.module(self.name).signature

    def loaded(self) -> Module:
        return self.backend.loaded(self.bundle, self.name, self.precision)

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        return self.loaded()(**inputs)


def measure(
    bundle: Bundle,
    backend: Backend,
    *,
    precisions: Iterable[Precision],
    only_profiles: bool,
    versions: Mapping[str, str],
    on_result: OnResult = lambda _: None,
) -> Certificate:
    """Runs all stored vectors on a backend and gives a certificate of what came out.

    Args:
        precisions: which rows to run; what there is in one precision only is always run.
        only_profiles: leave out what no profile holds, since an engine cannot run it.
    """
    stated, vectors = bundle.manifest.certificate, bundle.parity_vectors()
    wanted = set(precisions)
    # A bundle with graphs of one precision has no images of the other.
    recorded = {image.precision for image in stated.images}
    of_images = wanted & recorded or recorded

    def fits(row: ParityRow | ImageParity) -> bool:
        return not only_profiles or any(profile.holds(row.sizes) for profile in bundle.manifest.profiles)

    def alone(row: ParityRow) -> bool:
        return len(bundle.module(row.module).graphs) == 1

    rows: list[ParityRow] = []
    images: list[ImageParity] = []
    for precision in dict.fromkeys(row.precision for row in stated.rows):
        loader = _OneAtATime(backend)
        for row in stated.rows:
            if row.precision == precision and ((precision in wanted and fits(row)) or alone(row)):
                rows.append(measure_row(row, loader.load(bundle, row.module, precision), vectors))
                on_result(rows[-1])
        for image in stated.images:
            if image.precision == precision and precision in of_images and fits(image):
                images.append(measure_image(image, bundle, loader, vectors))
                on_result(images[-1])
    # What was not measured has not passed.
    complete = {row.module for row in rows} == bundle.manifest.modules.keys()
    passed = complete and all(row.passed for row in rows) and all(image.passed for image in images)
    return Certificate(
        verdict="passed" if passed else "failed",
        backend=backend.name,
        versions=versions,
        rows=tuple(rows),
        images=tuple(images),
    )

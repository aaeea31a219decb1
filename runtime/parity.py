"""Comparing a bundle with what the PyTorch reference computed: stored vectors in, a certificate out.

``export-engines`` uses it once, to certify; ``saishiki verify`` uses it again on the user's machine. Errors are
relative L2 errors against the reference in fp32. Budgets were set at export from what fp16 rounding costs the
reference itself.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from saishiki.runtime.backends.protocol import Backend, DenoisingLoop, Module, OnStep
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BundleError
from saishiki.runtime.manifest import Certificate, ImageParity, ParityRow, Precision
from saishiki.runtime.noise import Noise
from saishiki.runtime.pipelines import Sampling, load_pipeline
from saishiki.runtime.signature import Array

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
    found = {name.removeprefix(begin): tensor for name, tensor in vectors.items() if name.startswith(begin)}
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
    """The image row with the errors of a whole run against the stored states."""
    stored = group(vectors, image.vectors)
    pipeline = load_pipeline(bundle, backend, image.precision)
    states: list[Array] = []

    def keep(_: int, x: Array | None) -> None:
        if x is not None:
            states.append(x.copy())

    wanted = stored["states"]
    noise = Noise(start=stored["start"], steps=stored["noise"])
    sampling = Sampling(steps=len(wanted), eta=image.eta, start="noise")
    result = pipeline(stored["sketch"], stored["reference"], sampling, noise, keep)

    errors = tuple(relative_error(x, want) for x, want in zip(states, wanted, strict=False))
    got, want = result.clip(-1, 1), wanted[-1].clip(-1, 1)
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


class _LoadsOnce:
    """A backend that keeps the modules it has loaded."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._modules: dict[tuple[str, Precision], Module] = {}

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def default_precision(self) -> Precision:
        return self._backend.default_precision

    def check(self, bundle: Bundle, module: str, precision: Precision) -> None:
        self._backend.check(bundle, module, precision)

    def load(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        key = module, precision
        if key not in self._modules:
            self._modules[key] = self._backend.load(bundle, module, precision)
        return self._modules[key]

    def run_loop(self, denoiser: Module, loop: DenoisingLoop, on_step: OnStep) -> Array:
        return self._backend.run_loop(denoiser, loop, on_step)

    def close(self) -> None:
        self._modules.clear()


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
        precisions: which rows to run; modules that are fp32 only are always run.
        only_profiles: leave out what no profile holds, since an engine cannot run it.
    """
    stated, vectors = bundle.manifest.certificate, bundle.parity_vectors()
    wanted = set(precisions)

    def runs(row: ParityRow | ImageParity) -> bool:
        fits = any(profile.holds(row.sizes) for profile in bundle.manifest.profiles)
        return row.precision in wanted and (fits or not only_profiles)

    def alone(row: ParityRow) -> bool:
        return len(bundle.module(row.module).graphs) == 1

    rows: list[ParityRow] = []
    images: list[ImageParity] = []
    for precision in dict.fromkeys(row.precision for row in stated.rows):
        # One precision after the other, so that no more than one copy of the weights is in memory.
        loader = _LoadsOnce(backend)
        for row in stated.rows:
            if row.precision == precision and (runs(row) or alone(row)):
                rows.append(measure_row(row, loader.load(bundle, row.module, precision), vectors))
                on_result(rows[-1])
        for image in stated.images:
            if image.precision == precision and runs(image):
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

"""``Colorizer``: pictures in, coloured pictures out, on whatever backend runs a bundle here."""

import operator
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, TypedDict, Unpack, overload

import numpy as np
from PIL import Image

from saishiki.runtime.backends import Backend, open_backend
from saishiki.runtime.backends.protocol import OnStep, no_progress
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.canvas import Mode, restore
from saishiki.runtime.images import (
    ImageSource,
    check_output,
    uint8_from_normalized,
)
from saishiki.runtime.manifest import Manifest, Precision
from saishiki.runtime.noise import Noise, NoiseSource, seeds_for
from saishiki.runtime.pipelines import Pipeline, Sampling, load_pipeline
from saishiki.runtime.preparation import LineArt, Prepared, prepare
from saishiki.runtime.signature import Array, Profile

Progress = Callable[[int, int], None]


class Options(TypedDict, total=False):
    """The keywords of ``Colorizer.__call__``, which explains them."""

    steps: int | None
    eta: float | None
    seed: int | Sequence[int]
    noise: Noise | Array | None
    start: str | None
    size: int | tuple[int, int] | None
    fit: Mode
    line_art: LineArt
    distort_reference: bool
    progress: Progress | None
    cancel: Event | None


class Colorizer:
    """Colours sketches after references. Thread-safe; a context manager that frees the device.

    ::

        with Colorizer.load("faces.saishiki") as colorizer:
            colorizer("sketch.png", "reference.png", seed=7).save("out.png")
    """

    def __init__(self, bundle: Bundle, backend: Backend, pipeline: Pipeline, precision: Precision) -> None:
        self.bundle = bundle
        self.backend = backend
        self.precision = precision
        self._pipeline = pipeline

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        backend: str = "auto",
        device: str | None = None,
        precision: Precision | None = None,
    ) -> "Colorizer":
        """Loads a bundle.

        Args:
            backend: ``auto`` (the fastest that works here), ``onnxruntime``, ``tensorrt-rtx`` or ``tensorrt``.
            device: ``cpu``, ``cuda`` or ``cuda:N``; None takes what the backend is for.
            precision: ``fp32`` or ``fp16``; None takes what the backend runs best.

        Raises ``BundleError`` for a damaged bundle, ``BackendError`` where no backend can run it here.
        """
        if precision not in (None, "fp32", "fp16"):
            raise ValueError(f"unknown precision {precision!r}; expected fp32 or fp16")
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        runner = open_backend(opened, backend, device)
        chosen = precision or runner.default_precision
        try:
            return cls(opened, runner, load_pipeline(opened, runner, chosen), chosen)
        except BaseException:
            runner.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """What the bundle states about itself."""
        return self.bundle.manifest

    # A str is a sequence of str too, and is a path here.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, sketch: ImageSource, reference: ImageSource, **options: Unpack[Options]
    ) -> Image.Image: ...
    @overload
    def __call__(
        self, sketch: Sequence[ImageSource], reference: Sequence[ImageSource], **options: Unpack[Options]
    ) -> list[Image.Image]: ...

    def __call__(
        self,
        sketch: Any,
        reference: Any,
        *,
        steps: int | None = None,
        eta: float | None = None,
        seed: int | Sequence[int] = 0,
        noise: Noise | Array | None = None,
        start: str | None = None,
        size: int | tuple[int, int] | None = None,
        fit: Mode = "pad",
        line_art: LineArt = "auto",
        distort_reference: bool = False,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Any:
        """A coloured picture of the sketch's size for every sketch: one, or a list where a list was given.

        With ``fit="crop"`` it is the size of the part of the sketch that was coloured.

        Args:
            sketch: a path, bytes, a PIL image or an array, (H, W) or (H, W, 3 or 4); or a list of them.
            reference: the same, one for every sketch.
            steps: sampling steps; None takes the published number.
            eta: 0 is deterministic, 1 adds fresh noise in every step; None takes the published value.
            seed: of the noise; image i of a batch gets ``seed + i``, or the i-th of a sequence. The same seed gives the
                same noise on every backend, and for an image alone or in a batch.
            noise: start noise (B, 3, H, W) at the working size in place of the seed's, or both kinds as ``Noise``.
            start: ``noise`` (published), ``reference-walk`` or ``noised-reference``.
            size: working size, a number or (height, width); None takes the size the bundle is tuned for.
            fit: ``pad`` keeps all of the sketch, ``crop`` its centre as published, ``stretch`` changes its aspect.
            line_art: ``auto`` extracts lines (XDoG) where the sketch is not a line drawing, ``xdog`` always, ``as-is``
                never.
            distort_reference: warp the reference at random as the published test code does; for comparisons with it.
            progress: called with (steps done, steps) after every step.
            cancel: set it from another thread to stop at the next step.

        Raises ``ImageError`` for pictures that cannot be used, ``ValueError`` and ``TypeError`` for arguments out of
        range or of the wrong kind, and ``concurrent.futures.CancelledError`` once cancelled.
        """
        single = not isinstance(sketch, (list, tuple))
        sketches, references = _pairs(sketch, reference)
        sampling = self._sampling(steps, eta, start)
        height, width = self._working_size(size)
        seeds = seeds_for(seed, len(sketches))
        warps = seeds if distort_reference else (None,) * len(seeds)
        prepared = [
            prepare(s, r, height=height, width=width, fit=fit, line_art=line_art, warp_seed=warp)
            for s, r, warp in zip(sketches, references, warps, strict=True)
        ]
        noises = NoiseSource(noise, seeds, (3, height, width), sampling.steps if sampling.eta > 0 else 0)
        parts = [slice(first, first + self.max_batch) for first in range(0, len(prepared), self.max_batch)]
        on_step = _on_step(sampling.steps * len(parts), progress, cancel)
        images = np.concatenate([self._run(prepared[part], noises.of(part), sampling, on_step) for part in parts])
        pictures = uint8_from_normalized(images)
        check_output(pictures)
        restored = [Image.fromarray(restore(p.canvas, picture)) for p, picture in zip(prepared, pictures, strict=True)]
        return restored[0] if single else restored

    @property
    def max_batch(self) -> int:
        """The largest batch that is run at once; larger ones are split."""
        return max(profile.max["batch"] for profile in self.manifest.profiles)

    def close(self) -> None:
        """Frees the device; the colorizer cannot be used afterwards."""
        self.backend.close()

    def __enter__(self) -> "Colorizer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sampling(self, steps: int | None, eta: float | None, start: str | None) -> Sampling:
        defaults = self.manifest.sampler
        sampling = Sampling(
            steps=defaults.steps if steps is None else steps,
            eta=defaults.eta if eta is None else eta,
            start=defaults.start if start is None else start,
        )
        self._pipeline.check(sampling)
        return sampling

    def _working_size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        if size is None:
            tuned = self.manifest.profiles[0].opt
            return tuned["height"], tuned["width"]
        height, width = _sides(size)
        for module in self.manifest.modules.values():
            if {"height", "width"} <= set(module.signature.symbols):
                _check_size(height, width, module.signature.multiples, self.manifest.profiles)
        return height, width

    def _run(self, batch: list[Prepared], noise: Noise, sampling: Sampling, on_step: OnStep) -> Array:
        sketch = np.stack([item.sketch for item in batch])
        reference = np.stack([item.reference for item in batch])
        return self._pipeline(sketch, reference, sampling, noise, on_step)


def _pairs(sketch: Any, reference: Any) -> tuple[list[Any], list[Any]]:
    lists = [isinstance(given, (list, tuple)) for given in (sketch, reference)]
    if lists[0] != lists[1]:
        raise ValueError("sketch and reference must be one picture each, or a list each; got a list and a picture")
    sketches, references = (list(sketch), list(reference)) if lists[0] else ([sketch], [reference])
    if len(sketches) != len(references) or not sketches:
        raise ValueError(f"expected one reference for every sketch, got {len(sketches)} and {len(references)}")
    return sketches, references


def _sides(size: Any) -> tuple[int, int]:
    sides = size if isinstance(size, (list, tuple)) else (size, size)
    try:
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError):
        raise TypeError(f"size must be a whole number or (height, width), got {size!r}") from None
    return height, width


def _check_size(height: int, width: int, multiples: Mapping[str, int], profiles: tuple[Profile, ...]) -> None:
    for name, value in (("height", height), ("width", width)):
        multiple = multiples.get(name, 1)
        if value < 1 or value % multiple:
            raise ValueError(f"size: {name} must be a positive multiple of {multiple}, got {value}")
    if not any(profile.holds({"height": height, "width": width}) for profile in profiles):
        ranges = "; ".join(str(profile) for profile in profiles)
        raise ValueError(f"size {height}x{width} is in none of the bundle's profiles ({ranges}); export it with --size")


def _on_step(total: int, progress: Progress | None, cancel: Event | None) -> OnStep:
    if progress is None and cancel is None:
        return no_progress  # then a backend may run all steps in one piece
    report = _Report(total, progress, cancel)
    report.stop_if_cancelled()
    return report


class _Report:
    """Counts steps over all parts of a batch, tells them on, and stops the run once cancelled."""

    def __init__(self, total: int, progress: Progress | None, cancel: Event | None) -> None:
        self._done, self._total, self._progress, self._cancel = 0, total, progress, cancel

    def __call__(self, step: int, x: Array | None) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
        self.stop_if_cancelled()

    def stop_if_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise CancelledError(f"cancelled after {self._done} of {self._total} steps")

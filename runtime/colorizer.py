"""``Colorizer``: pictures in, coloured pictures out, on whatever backend runs a bundle here."""

import operator
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, overload

import numpy as np
from PIL import Image

from saishiki.runtime.backends import Backend, open_backend
from saishiki.runtime.backends.protocol import OnStep, no_progress
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.images import ImageSource, check_output, uint8_from_normalized
from saishiki.runtime.manifest import Manifest, Precision
from saishiki.runtime.noise import Noise, NoiseSource, seeds_for
from saishiki.runtime.pipelines import Pictures, Pipeline, Work, load_pipeline
from saishiki.runtime.pipelines.reference_cache import ReferenceCache
from saishiki.runtime.signature import Array, Profile, multiples_of

Progress = Callable[[int, int], None]


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

    @property
    def reference_cache(self) -> ReferenceCache | None:
        """What is kept of references between calls, to be limited or cleared; None for a family that keeps nothing."""
        return self._pipeline.reference_cache

    # A str is a sequence of str too, and is a path here.
    @overload
    def __call__(self, sketch: ImageSource, reference: ImageSource | None, **options: Any) -> Image.Image: ...
    @overload
    def __call__(
        self, sketch: Sequence[ImageSource], reference: Sequence[ImageSource] | ImageSource | None, **options: Any
    ) -> list[Image.Image]: ...

    def __call__(
        self,
        sketch: Any,
        reference: Any,
        *,
        seed: int | Sequence[int] = 0,
        noise: Noise | Array | None = None,
        size: int | tuple[int, int] | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
        **options: Any,
    ) -> Any:
        """A coloured picture for every sketch: one, or a list where a list was given.

        Args:
            sketch: a path, bytes, a PIL image or an array, (H, W) or (H, W, 3 or 4); or a list of them.
            reference: the same, one for every sketch or one for all. None, where the family allows it, is none.
            seed: of the noise; image i of a batch gets ``seed + i``, or the i-th of a sequence. The same seed gives the
                same noise on every backend, and for an image alone or in a batch.
            noise: start noise (B, C, H, W) in place of the seed's, or both kinds as ``Noise``: 3 channels at the
                working size, or 4 at an eighth of it where the family works on latents.
            size: working size, a number or (height, width); None takes the size the bundle is tuned for.
            progress: called with (steps done, steps) after every step.
            cancel: set it from another thread to stop at the next step. With this or ``progress`` a GPU gets one step
                at a time, and the one that it has is not stopped; without them it gets all steps at once.
            options: those of the bundle's family: the fields of ``AnimeDiffusionOptions`` or
                ``ColorizeDiffusionOptions`` in ``saishiki.runtime.pipelines``; what is left out is as published.

        Raises ``ImageError`` for pictures that cannot be used, ``ValueError`` and ``TypeError`` for arguments out of
        range, of the wrong kind or of another family, ``BundleError`` for what the bundle was exported without, and
        ``concurrent.futures.CancelledError`` once cancelled.
        """
        single = not isinstance(sketch, (list, tuple))
        sketches, references = _pairs(sketch, reference)
        chosen = self._pipeline.options(options)
        height, width = self._working_size(size)
        pictures = Pictures(sketches, references, seeds_for(seed, len(sketches)), height, width)
        work = self._pipeline.prepare(pictures, chosen)
        noises = NoiseSource(noise, pictures.seeds, work.draws.shape, work.draws.steps)
        parts = [slice(first, first + self.max_batch) for first in range(0, len(sketches), self.max_batch)]
        on_step = _on_step(work.steps * len(parts), progress, cancel)
        images = np.concatenate([self._run(work, part, noises.of(part), on_step) for part in parts])
        pixels = uint8_from_normalized(images)
        check_output(pixels)
        finished = [Image.fromarray(work.finish(index, image)) for index, image in enumerate(pixels)]
        return finished[0] if single else finished

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

    def _working_size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        if size is None:
            tuned = self.manifest.profiles[0].opt
            return tuned["height"], tuned["width"]
        height, width = _sides(size)
        multiples = multiples_of(module.signature for module in self.manifest.modules.values())
        _check_size(height, width, multiples, self.manifest.profiles)
        return height, width

    def _run(self, work: Work, part: slice, noise: Noise, on_step: OnStep) -> Array:
        return work.run(part, noise, on_step)


def _pairs(sketch: Any, reference: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    many, several = (isinstance(given, (list, tuple)) for given in (sketch, reference))
    if several and not many:
        raise ValueError("sketch and reference must be one picture each, or a list each; got a picture and a list")
    sketches = tuple(sketch) if many else (sketch,)
    references = tuple(reference) if several else (reference,) * len(sketches)
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
            near = sorted({max(1, value // multiple) * multiple, max(1, value // multiple + 1) * multiple})
            raise ValueError(
                f"size: {name} must be a positive multiple of {multiple}, got {value}; "
                f"the nearest: {', '.join(map(str, near))}"
            )
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

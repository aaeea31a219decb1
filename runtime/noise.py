"""Gaussian noise from seeds: the same numbers on every backend, and for an image alone or in a batch."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Noise:
    """What a run draws: start (B, C, H, W), and steps (S, B, C, H, W), or None where eta is 0."""

    start: Float32
    steps: Float32 | None


def draw_noise(seeds: Sequence[int], shape: tuple[int, int, int], *, steps: int) -> Noise:
    """Noise for a batch of ``len(seeds)`` images of ``shape`` (C, H, W), fp32.

    Every image has its own Philox stream, which yields its start noise first, then that of step 0, 1, ...;
    ``steps`` is 0 for a deterministic run.
    """
    streams = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]
    draws = [stream.standard_normal((1 + steps, *shape), dtype=np.float32) for stream in streams]
    stacked = np.stack(draws, axis=1)
    return Noise(start=stacked[0], steps=stacked[1:] if steps else None)


def seeds_for(seed: int | Sequence[int], batch: int) -> tuple[int, ...]:
    """One seed per image: ``seed, seed + 1, ...`` from a number, or the given sequence.

    Raises ``TypeError`` for what is not a whole number, ``ValueError`` for a negative seed or a sequence of another
    length.
    """
    if isinstance(seed, Sequence | np.ndarray):
        seeds = tuple(operator.index(s) for s in seed)
    else:
        seeds = tuple(operator.index(seed) + i for i in range(batch))
    if len(seeds) != batch:
        raise ValueError(f"expected one seed or {batch} of them, one per image; got {len(seeds)}")
    if min(seeds) < 0:
        raise ValueError(f"seeds must not be negative, got {min(seeds)}")
    return seeds


@dataclass(frozen=True)
class NoiseSource:
    """The noise of a whole batch, a part of it at a time: given, or drawn when it is asked for.

    Args:
        given: start noise (B, C, H, W), or both kinds, in place of what the seeds would give.
        shape: (C, H, W).
        steps: steps that add noise; 0 for a deterministic run.

    Raises ``ValueError`` for given noise of another shape or dtype, or with values that are not finite.
    """

    given: Noise | Float32 | None
    seeds: tuple[int, ...]
    shape: tuple[int, int, int]
    steps: int

    def __post_init__(self) -> None:
        batch = (len(self.seeds), *self.shape)
        if isinstance(self.given, Noise):
            _check_noise("step noise", self.given.steps, (self.steps, *batch) if self.steps else None)
        if self.given is not None:
            _check_noise("start noise", self.given.start if isinstance(self.given, Noise) else self.given, batch)

    def of(self, part: slice) -> Noise:
        """The noise of some of the images."""
        if isinstance(self.given, Noise):
            steps = None if self.given.steps is None else self.given.steps[:, part]
            return Noise(self.given.start[part], steps)
        drawn = draw_noise(self.seeds[part], self.shape, steps=self.steps)
        return drawn if self.given is None else Noise(self.given[part], drawn.steps)


def _check_noise(name: str, noise: Float32 | None, shape: tuple[int, ...] | None) -> None:
    found = None if noise is None else np.shape(noise)
    if found != shape:
        raise ValueError(f"{name}: expected {shape or 'None, since no step of this run adds noise'}, got {found}")
    if noise is None:
        return
    if not isinstance(noise, np.ndarray) or noise.dtype != np.float32:
        raise ValueError(f"{name}: expected float32, got {getattr(noise, 'dtype', type(noise).__name__)}")
    if not np.isfinite(noise).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")

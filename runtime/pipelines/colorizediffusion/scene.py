"""All that one picture is coloured from, as arrays: what is left once files, sizes and masks have been seen to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from saishiki.runtime.noise import draw_noise
from saishiki.runtime.pipelines.colorizediffusion.placement import Box
from saishiki.runtime.pipelines.reference_cache import Key, digest_of
from saishiki.runtime.signature import Array


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is put together when it is needed: (height, width, 3) uint8 RGB, known by its key until then."""

    key: Key
    height: int
    width: int
    pixels: Callable[[], Array]

    @classmethod
    def of(cls, pixels: Array) -> "Picture":
        """A picture that is there already."""
        height, width = pixels.shape[:2]
        return cls(("pixels", digest_of(pixels)), height, width, lambda: pixels)


@dataclass(frozen=True, eq=False)
class Posterior:
    """The noise that VAE samples of one picture are drawn with, in the published order of draws.

    Args:
        seed: of a numpy Philox stream of the picture's own.
        given: (4, H/8, W/8) fp32 for every draw, in place of the seed's.
    """

    seed: int
    given: tuple[Array, ...] | None = None

    def key(self, draw: int) -> Key:
        """What the draw depends on."""
        return ("seed", self.seed, draw) if self.given is None else ("noise", digest_of(self._given(draw)))

    def noise(self, draw: int, shape: tuple[int, int, int]) -> Array:
        """The noise of a draw, (1, 4, H/8, W/8) for ``shape`` (4, H/8, W/8); raises ``ValueError`` for too little."""
        if self.given is not None:
            return self._given(draw)[None].astype(np.float32)
        drawn = draw_noise([self.seed], shape, steps=draw)
        return drawn.start if drawn.steps is None else drawn.steps[draw - 1]

    def _given(self, draw: int) -> Array:
        if self.given is None or draw >= len(self.given):
            raise ValueError(f"reference_noise: the run draws more than the {len(self.given or ())} that were given")
        return self.given[draw]


@dataclass(frozen=True, eq=False)
class Scene:
    """What one picture is coloured from.

    Args:
        sketch: (1, 3, H, W) fp32, bright lines (1) on dark (-1).
        reference: None colours without any.
        masked_reference: the reference with its foreground painted white; None where no mode asks for it.
        mask: (1, 1, H/8, W/8) fp32, the sketch's foreground; None in modes without a mask.
        box: where the sketch lies on the working area: left, top, width, height in px.
    """

    sketch: Array
    reference: Picture | None
    background: Picture | None
    masked_reference: Picture | None
    mask: Array | None
    posterior: Posterior
    box: Box

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the working area, px."""
        height, width = self.sketch.shape[-2:]
        return height, width


def masks_of(scenes: Sequence[Scene]) -> Array:
    """The masks of several scenes, (B, 1, H/8, W/8)."""
    masks = [scene.mask for scene in scenes]
    return np.concatenate([mask for mask in masks if mask is not None])

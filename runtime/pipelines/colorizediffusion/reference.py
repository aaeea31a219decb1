"""From a reference or background picture of any size to what the image encoder and the VAE take in.

Pictures stay (H, W, 3) uint8 until the last step; white is 255, which is exactly +1 afterwards.
Source: tellurion-kanata/colorizeDiffusion c9bd9fb, behaviour; mean and deviation of OpenAI's CLIP.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.errors import ImageError
from saishiki.runtime.images import MAX_SIDE_PX, normalized_from_uint8
from saishiki.runtime.resampling import resize_bicubic, resize_corner_aligned
from saishiki.runtime.signature import Array

WHITE = 255
CLIP_SIZE_PX = 224
_CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)[:, None, None]
_CLIP_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)[:, None, None]


def clip_pixels(rgb: NDArray[np.uint8], side: int = CLIP_SIZE_PX) -> Array:
    """(1, 3, side, side) fp32: squashed by the corner-aligned antialiased bicubic, not clamped, normalised as CLIP's.

    rgb: (H, W, 3) uint8 of any size and aspect. Raises ``ImageError`` for anything else.
    """
    squashed = resize_corner_aligned(_planes(rgb), side, side)
    unit = (squashed + np.float32(1)) / np.float32(2)
    return ((unit - _CLIP_MEAN) / _CLIP_DEVIATION)[None]


def vae_pixels(rgb: NDArray[np.uint8], height: int, width: int) -> Array:
    """(1, 3, height, width) fp32 about [-1, 1]: squashed by plain bicubic (no antialias), not clamped.

    rgb: (H, W, 3) uint8. Raises ``ImageError`` for anything else.
    """
    return resize_bicubic(_planes(rgb), height, width)[None]


def pad_sides(pixels: NDArray[Any], scale: float, *, fill: int = WHITE) -> NDArray[Any]:
    """Pixels (H, W, ...) centred on ``int(W scale)`` columns, the new ones filled: the reference padding scale.

    A mask (H, W) of the same picture is padded with ``fill=0``, background. Raises ``ValueError`` for a scale below 1
    and ``ImageError`` where the result would be wider than any picture may be.
    """
    if not (math.isfinite(scale) and scale >= 1):
        raise ValueError(f"the reference padding scale must be at least 1, got {scale}")
    width = pixels.shape[1]
    padded = int(width * scale)
    if padded > max(MAX_SIDE_PX, width):
        raise ImageError(f"{width} px padded by {scale} are {padded} px wide: at most {MAX_SIDE_PX} px are possible")
    left = (padded - width) // 2
    margins = [(0, 0), (left, padded - width - left), (0, 0)]
    return np.pad(pixels, margins[: pixels.ndim], constant_values=fill)


def keep_background(rgb: NDArray[np.uint8], mask: Array, threshold: float) -> NDArray[np.uint8]:
    """The picture with its foreground painted white: a pixel stays where ``mask < threshold`` (fp32).

    The masked reference of background mode, and "remove foreground" of a background picture. rgb: (H, W, 3) uint8;
    mask: (H, W), 1 = foreground. Raises ``ImageError`` where the two differ in size.
    """
    if rgb.shape[:2] != mask.shape:
        raise ImageError(f"a mask {mask.shape} does not fit a picture {rgb.shape[:2]} (height, width)")
    kept = mask.astype(np.float32) < np.float32(threshold)
    return np.where(kept[..., None], rgb, np.uint8(WHITE))


def _planes(rgb: NDArray[np.uint8]) -> Array:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(f"expected a picture of uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}")
    return normalized_from_uint8(rgb).transpose(2, 0, 1)

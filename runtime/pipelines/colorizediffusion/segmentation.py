"""What the published mask networks take in and give out; a user supplies such a network, it is not part of Saishiki.

Sketches: SkyTNT's anime-segmentation ISNet, retrained on sketches. References and backgrounds: BRIA's RMBG-2.0. Both
see a square of 1024 px and give one plane. Source: behaviour of tellurion-kanata/colorizeDiffusion c9bd9fb.
"""

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.errors import ImageError
from saishiki.runtime.images import normalized_from_uint8
from saishiki.runtime.resampling import resize_antialiased, resize_bicubic
from saishiki.runtime.signature import Array

SIZE_PX = 1024
DILATION_PX = 11
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
_IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def sketch_network_pixels(sketch: Array) -> Array:
    """(1, 3, 1024, 1024) fp32 about [-1, 1], dark lines on bright: the prepared sketch negated and squashed.

    sketch: (1, 3, H, W) fp32, bright on dark, on its working area. Plain bicubic.
    """
    return resize_bicubic(-sketch, SIZE_PX, SIZE_PX)


def sketch_mask(output: Array, *, height: int, width: int, logits: bool = True) -> Array:
    """(1, 1, height, width) fp32 in [0, 1] on the working area: sigmoid, plain bicubic, clamped.

    output: one plane, (H, W) or with axes of 1 before. logits: False for a network that ends in its own sigmoid.
    Raises ``ImageError`` for another form or values that are not finite.
    """
    return np.clip(resize_bicubic(_probability(output, logits), height, width), 0, 1)[None, None]


def reference_network_pixels(rgb: NDArray[np.uint8]) -> Array:
    """(1, 3, 1024, 1024) fp32 normalised as for ImageNet: the picture squashed by the antialiased triangle.

    rgb: (H, W, 3) uint8.
    """
    unit = (normalized_from_uint8(rgb).transpose(2, 0, 1) + np.float32(1)) / np.float32(2)
    squashed = resize_antialiased(unit, SIZE_PX, SIZE_PX, kernel="bilinear")
    return ((squashed - _IMAGENET_MEAN) / _IMAGENET_DEVIATION)[None]


def reference_mask(output: Array, *, height: int, width: int, logits: bool = True, dilate: bool = True) -> Array:
    """(height, width) fp32 in [0, 1] at the picture's own size: sigmoid, antialiased triangle, dilated, clamped.

    Published behaviour dilates the masks of references and backgrounds but not that of a result whose background is
    removed. Arguments and errors as for :func:`sketch_mask`.
    """
    mask = resize_antialiased(_probability(output, logits), height, width, kernel="bilinear")
    return np.clip(dilate_mask(mask) if dilate else mask, 0, 1)


def dilate_mask(mask: Array) -> Array:
    """The largest value of the 11 x 11 px around each pixel, nothing beyond the border; mask: (H, W)."""
    return _running_max(_running_max(mask).T).T


def _running_max(mask: Array) -> Array:
    """Along rows, windows of 2, 4, 8 and then 11 samples: each the larger of two shorter ones."""
    radius = DILATION_PX // 2
    widest = np.pad(mask, ((0, 0), (radius, radius)), constant_values=-np.inf)
    for shift in (1, 2, 4, DILATION_PX - 8):
        widest = np.maximum(widest[:, :-shift], widest[:, shift:])
    return widest


def _probability(output: Array, logits: bool) -> Array:
    if output.ndim < 2 or output.size != output.shape[-2] * output.shape[-1]:
        raise ImageError(f"expected one plane (1, 1, H, W) from the mask network, got {output.shape}")
    plane = output.reshape(output.shape[-2:]).astype(np.float32)
    if not np.all(np.isfinite(plane)):
        raise ImageError("the mask network gave NaN or infinite values: run it in fp32")
    # Written with tanh, the sigmoid cannot overflow.
    return (np.tanh(plane / np.float32(2)) + np.float32(1)) / np.float32(2) if logits else plane

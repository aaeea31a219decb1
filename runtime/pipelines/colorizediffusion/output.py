"""What becomes of a generated picture: its sketch's part of the working area, and a white background if asked for."""

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.errors import ImageError
from saishiki.runtime.pipelines.colorizediffusion.placement import Box
from saishiki.runtime.pipelines.colorizediffusion.reference import WHITE
from saishiki.runtime.signature import Array


def crop_image(image: NDArray[np.uint8], original_shape: Box) -> NDArray[np.uint8]:
    """The part (..., height, width, 3) of (..., H, W, 3) that the sketch covers: (left, top, width, height) in px."""
    left, top, width, height = original_shape
    return image[..., top : top + height, left : left + width, :].copy()


def remove_background(image: NDArray[np.uint8], mask: Array, threshold: float) -> NDArray[np.uint8]:
    """The picture painted white where ``mask < threshold`` (fp32). image: (H, W, 3) uint8; mask: (H, W), its own.

    Raises ``ImageError`` where the two differ in size.
    """
    if image.shape[:2] != mask.shape:
        raise ImageError(f"a mask {mask.shape} does not fit a picture {image.shape[:2]} (height, width)")
    background = mask.astype(np.float32) < np.float32(threshold)
    return np.where(background[..., None], np.uint8(WHITE), image)

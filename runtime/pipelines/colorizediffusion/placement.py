"""Where a sketch, or its mask, lies on the working area: as large as fits, truncated to whole pixels, centred."""

import numpy as np

from saishiki.runtime.errors import ImageError
from saishiki.runtime.resampling import resize_antialiased
from saishiki.runtime.signature import Array

Box = tuple[int, int, int, int]
"""(left, top, width, height) in px of the working area; the published code calls it ``original_shape``."""


def fit_box(source_height: int, source_width: int, *, height: int, width: int) -> Box:
    """The box of a source_width x source_height picture on a working area of width x height px.

    Both sides are truncated as published, which may cost a row: 161 px high to 128 gives 127 rows. Raises
    ``ImageError`` for a strip so long that nothing of its shorter side is left.
    """
    ratio = min(height / source_height, width / source_width)
    inner_height, inner_width = int(source_height * ratio), int(source_width * ratio)
    if min(inner_height, inner_width) < 1:
        raise ImageError(
            f"a sketch of {source_width}x{source_height} px is too long a strip for {width}x{height} px: "
            "it would be less than one pixel wide; cut it into shorter pieces"
        )
    return (width - inner_width) // 2, (height - inner_height) // 2, inner_width, inner_height


def place_planes(planes: Array, box: Box, *, height: int, width: int, fill: float) -> Array:
    """(1, C, height, width) fp32: planes (C, H, W) resized to the box and put on ``fill``.

    Antialiased bicubic, not clamped.
    """
    left, top, inner_width, inner_height = box
    canvas = np.full((1, len(planes), height, width), fill, np.float32)
    canvas[0, :, top : top + inner_height, left : left + inner_width] = resize_antialiased(
        planes, inner_height, inner_width
    )
    return canvas

"""From a sketch of any size to what the sketch encoder takes in: bright lines (+1) on dark (-1).

Source: tellurion-kanata/colorizeDiffusion c9bd9fb, the behaviour of its preprocessors; ``invert-webui`` is the
"invert" line preprocessor that Stable Diffusion web UIs share.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.errors import ImageError
from saishiki.runtime.images import normalized_from_uint8
from saishiki.runtime.pipelines.colorizediffusion.placement import Box, fit_box, place_planes
from saishiki.runtime.resampling import Taps, apply_taps
from saishiki.runtime.signature import Array

SketchMode = Literal["invert", "none", "invert-webui"]
SKETCH_MODES: tuple[SketchMode, ...] = get_args(SketchMode)

_WEBUI_SIGMA_PX = 6.0


@dataclass(frozen=True)
class PlacedSketch:
    """A sketch (1, 3, height, width) fp32, bright on dark, and its box on the working area."""

    pixels: Array
    original_shape: Box


def prepare_sketch(rgb: NDArray[np.uint8], *, height: int, width: int, mode: SketchMode = "invert") -> PlacedSketch:
    """The sketch on a working area of width x height px, on -1.

    rgb: (H, W, 3) uint8. mode: ``invert`` for black lines on white paper, ``none`` for bright lines on dark,
    ``invert-webui`` for pencil and scans, whose lines are drawn out and evened (:func:`draw_out_lines`). Resizing
    overshoots [-1, 1] at sharp lines; that is published behaviour and stays.

    Raises ``ValueError`` for another mode and ``ImageError`` for other pixels or a strip too long to fit.
    """
    if mode not in SKETCH_MODES:
        raise ValueError(f"unknown sketch mode {mode!r}: use one of {', '.join(SKETCH_MODES)}")
    box = fit_box(*_checked(rgb).shape[:2], height=height, width=width)
    return PlacedSketch(place_planes(_lines(rgb, mode), box, height=height, width=width, fill=-1), box)


def empty_sketch(*, height: int, width: int) -> PlacedSketch:
    """The working area without a sketch: -1 everywhere, which is also the unconditional sketch of guidance."""
    return PlacedSketch(np.full((1, 3, height, width), -1, np.float32), (0, 0, width, height))


def draw_out_lines(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) uint8 bright lines on black: how much darker than its blurred surroundings the darkest channel is.

    The median of what exceeds 8 levels becomes 127. The blur is OpenCV's on floats with sigma 6 px (49 taps, border
    reflected about the outermost pixel); fp32 sums in another order may move one pixel in a million by one level.

    rgb: (H, W, 3) uint8. Raises ``ImageError`` for anything else.
    """
    planes = _checked(rgb).astype(np.float32).transpose(2, 0, 1)
    height, width = rgb.shape[:2]
    blurred = apply_taps(planes, _gaussian_taps(height), _gaussian_taps(width))
    depth = np.clip((blurred - planes).min(axis=0), 0, 255)
    strong = depth[depth > 8]
    median = np.median(strong) if strong.size else np.float32(0)
    lines: NDArray[np.float32] = depth / np.maximum(np.float32(16), median) * np.float32(127)
    return np.clip(lines, 0, 255).astype(np.uint8)


def _checked(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(f"expected a sketch of uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}")
    return rgb


def _lines(rgb: NDArray[np.uint8], mode: SketchMode) -> Array:
    if mode == "invert-webui":
        lines = normalized_from_uint8(draw_out_lines(rgb))
        return np.broadcast_to(lines, (3, *lines.shape))
    planes = normalized_from_uint8(rgb).transpose(2, 0, 1)
    return -planes if mode == "invert" else planes


def _gaussian_taps(size: int) -> Taps:
    radius = round(8 * _WEBUI_SIGMA_PX + 1) // 2
    kernel = np.exp(-np.square(np.arange(-radius, radius + 1)) / (2 * _WEBUI_SIGMA_PX**2))
    reflected = (np.arange(size)[:, None] + np.arange(-radius, radius + 1)) % max(2 * (size - 1), 1)
    indices = np.minimum(reflected, np.abs(2 * (size - 1) - reflected))
    return Taps(indices, np.broadcast_to((kernel / kernel.sum()).astype(np.float32), indices.shape))

"""From a sketch and a reference of any size and kind to what a network takes in."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from saishiki.runtime.canvas import Canvas, Mode, fit_canvas, place
from saishiki.runtime.images import ImageSource, grey_from_rgb, is_line_art, normalized_from_uint8, read_image
from saishiki.runtime.signature import Array
from saishiki.runtime.thin_plate_spline import draw_control_points, warp_image
from saishiki.runtime.xdog import extract_lines

LineArt = Literal["auto", "as-is", "xdog"]


@dataclass(frozen=True)
class Prepared:
    """A sketch (1, H, W) and a reference (3, H, W), fp32 in [-1, 1], and where the sketch lies on the working area."""

    sketch: Array
    reference: Array
    canvas: Canvas


def prepare(
    sketch: ImageSource,
    reference: ImageSource,
    *,
    height: int,
    width: int,
    fit: Mode = "pad",
    line_art: LineArt = "auto",
    warp_seed: int | None = None,
) -> Prepared:
    """A sketch and a reference of any size as the network wants them; see ``Colorizer.__call__`` for the arguments."""
    if line_art not in ("auto", "as-is", "xdog"):
        raise ValueError(f"unknown line_art {line_art!r}; expected auto, as-is or xdog")
    drawing, colours = read_image(sketch), read_image(reference)
    if line_art == "xdog" or (line_art == "auto" and not is_line_art(drawing)):
        lines = extract_lines(drawing)
    else:
        lines = grey_from_rgb(drawing)
    if warp_seed is not None:
        colours = warp_image(colours, draw_control_points(np.random.default_rng(warp_seed)))
    canvas = _canvas(lines, height, width, fit)
    placed = place(_canvas(colours, height, width, fit), colours, fill="edge")
    return Prepared(
        sketch=normalized_from_uint8(place(canvas, lines, fill=255))[None],
        reference=np.ascontiguousarray(normalized_from_uint8(placed).transpose(2, 0, 1)),
        canvas=canvas,
    )


def _canvas(image: Array, height: int, width: int, fit: Mode) -> Canvas:
    return fit_canvas(image.shape[1], image.shape[0], target_height=height, target_width=width, multiple=1, mode=fit)

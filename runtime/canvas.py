"""Any picture size to the model's working size, and back.

::

    canvas = fit_canvas(1000, 700, target_height=256, target_width=256)
    sketch = place(canvas, sketch, fill=255)
    image = restore(canvas, colorize(sketch))
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saishiki.runtime.errors import ImageError

Mode = Literal["pad", "crop", "stretch"]
Fill = int | Literal["edge"]
Box = tuple[int, int, int, int]

# A long strip cropped to a square is first resized to its whole length; beyond this it is refused instead.
MAX_RESIZED_PIXELS = 4096 * 4096


@dataclass(frozen=True)
class Canvas:
    """Where a picture lies on the working area: it is resized, and its corner put at (left, top), all in px.

    ``left`` and ``top`` are negative where the picture overhangs the working area, which then shows part of it.
    """

    source_height: int
    source_width: int
    height: int
    width: int
    resized_height: int
    resized_width: int
    top: int
    left: int

    @property
    def region(self) -> Box:
        """(left, top, right, bottom) of the source pixels that lie wholly on the working area."""
        left, right = _visible(self.left, self.width, self.resized_width, self.source_width)
        top, bottom = _visible(self.top, self.height, self.resized_height, self.source_height)
        return left, top, right, bottom


def fit_canvas(
    width: int, height: int, *, target_height: int, target_width: int, multiple: int = 8, mode: Mode = "pad"
) -> Canvas:
    """How a picture of width x height px goes onto a working area of target_width x target_height px.

    ``pad`` shows the whole picture, as large as fits, centred. ``crop`` covers the working area and loses what
    overhangs (for a square: shorter side = size, longer side truncated, centre crop, as AnimeDiffusion 1582eb0 does).
    ``stretch`` ignores the aspect ratio.

    Raises ``ValueError`` for an unknown mode or a working size that is not a positive multiple of ``multiple``, and
    ``ImageError`` for a picture without pixels or too long to be cropped.
    """
    if min(width, height) < 1:
        raise ImageError(f"a picture of {width}x{height} px has no pixels")
    if min(target_width, target_height) < 1 or target_width % multiple or target_height % multiple:
        raise ValueError(f"the working size {target_width}x{target_height} is not a positive multiple of {multiple}")
    resized_width, resized_height = _resized_size(width, height, target_width, target_height, mode)
    canvas = Canvas(
        source_height=height,
        source_width=width,
        height=target_height,
        width=target_width,
        resized_height=resized_height,
        resized_width=resized_width,
        # round() to even, as the published centre crop does.
        top=-round((resized_height - target_height) / 2),
        left=-round((resized_width - target_width) / 2),
    )
    if mode == "crop":
        _check_crop(canvas)
    return canvas


def place(canvas: Canvas, image: NDArray[np.uint8], *, fill: Fill) -> NDArray[np.uint8]:
    """The picture on the working area, (H, W, 3) or (H, W) uint8 as given; bilinear with antialias, as published.

    fill: the level of the padding (255, paper, for sketches) or ``"edge"`` to repeat the picture's border (references).
    A picture that needs no resizing is not resampled. Raises ``ImageError`` where image has not the source size.
    """
    _check_image(image, canvas.source_height, canvas.source_width)
    resized = _resize(image, canvas.resized_width, canvas.resized_height, Image.Resampling.BILINEAR)
    top, left = max(0, -canvas.top), max(0, -canvas.left)
    shown = resized[top : top + canvas.height, left : left + canvas.width]
    return _pad(shown, canvas, fill)


def restore(canvas: Canvas, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The working image back at the source's size, without its padding, (H, W, 3) or (H, W) uint8; bicubic.

    After ``crop`` only the part of the source that was shown comes back: ``canvas.region`` says where it lies.
    Raises ``ImageError`` where image has not the working size.
    """
    _check_image(image, canvas.height, canvas.width)
    left, top, right, bottom = canvas.region
    x0, x1 = (canvas.left + x * canvas.resized_width / canvas.source_width for x in (left, right))
    y0, y1 = (canvas.top + y * canvas.resized_height / canvas.source_height for y in (top, bottom))
    if (x1 - x0, y1 - y0) == (right - left, bottom - top):
        return image[round(y0) : round(y1), round(x0) : round(x1)].copy()
    # Cut first, so that the filter cannot reach into the padding.
    x, y = math.floor(x0), math.floor(y0)
    picture = image[y : math.ceil(y1), x : math.ceil(x1)]
    box = (x0 - x, y0 - y, x1 - x, y1 - y)
    return _resize(picture, right - left, bottom - top, Image.Resampling.BICUBIC, box)


def _resized_size(width: int, height: int, target_width: int, target_height: int, mode: Mode) -> tuple[int, int]:
    wider = width * target_height >= height * target_width
    match mode:
        case "stretch":
            return target_width, target_height
        case "pad" if wider:
            return target_width, max(1, round(target_width * height / width))
        case "pad":
            return max(1, round(target_height * width / height)), target_height
        case "crop" if wider:
            return int(target_height * width / height), target_height
        case "crop":
            return target_width, int(target_width * height / width)
    raise ValueError(f"unknown mode {mode!r}: use pad, crop or stretch")


def _check_crop(canvas: Canvas) -> None:
    left, top, right, bottom = canvas.region
    if canvas.resized_width * canvas.resized_height > MAX_RESIZED_PIXELS or right <= left or bottom <= top:
        raise ImageError(
            f"{canvas.source_width}x{canvas.source_height} px is too long a strip to be brought to "
            f"{canvas.width}x{canvas.height} px by cropping: use the mode pad, or crop it first"
        )


def _visible(offset: int, working: int, resized: int, source: int) -> tuple[int, int]:
    """First and one-past-last source pixel of one axis that lie wholly on the working area."""
    first = max(0, -offset) * source / resized
    last = min(resized, working - offset) * source / resized
    return math.ceil(first), math.floor(last)


def _resize(
    image: NDArray[np.uint8],
    width: int,
    height: int,
    resample: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), resample, box=box))


def _pad(image: NDArray[np.uint8], canvas: Canvas, fill: Fill) -> NDArray[np.uint8]:
    top, left = max(0, canvas.top), max(0, canvas.left)
    bottom, right = canvas.height - top - image.shape[0], canvas.width - left - image.shape[1]
    margins = [(top, bottom), (left, right), (0, 0)][: image.ndim]
    if fill == "edge":
        return np.pad(image, margins, mode="edge")
    return np.pad(image, margins, constant_values=fill)


def _check_image(image: NDArray[Any], height: int, width: int) -> None:
    if image.dtype != np.uint8 or image.shape not in ((height, width), (height, width, 3)):
        raise ImageError(
            f"expected uint8 ({height}, {width}, 3) or ({height}, {width}), got {image.dtype} {image.shape}"
        )

"""Masks that users give: 1 is foreground, 0 is background, everything between is decided by a threshold later."""

import contextlib
import io
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from saishiki.runtime.errors import ImageError
from saishiki.runtime.images import FORMATS, ImageSource, read_image
from saishiki.runtime.pipelines.colorizediffusion.placement import Box, place_planes
from saishiki.runtime.signature import Array

# Multiples of 2^-16 that sum to 1: in fp64 a grey pixel's luma is its level exactly.
_LUMA = np.array([19595, 38470, 7471]) / 65536


def read_mask(source: ImageSource, *, height: int, width: int, name: str) -> Array:
    """The mask (H, W) fp32 in [0, 1] of a picture of width x height px.

    source: as for ``read_image``; arrays may also be bool. Where some pixel is not opaque, the transparency is the
    mask (opaque = foreground); otherwise brightness is (white = foreground). 8 and 16 bits and floats keep their
    precision. EXIF orientation is applied, as to the picture itself. name: what to call it in errors, such as
    "sketch mask".

    Raises ``ImageError`` for a mask of another size, naming both, or one that is no readable picture, ``OSError``
    where the path cannot be opened, ``TypeError`` for any other source.
    """
    levels = source if isinstance(source, np.ndarray) else _levels_from_picture(source, name)
    mask = _mask_from_levels(levels, name)
    if mask.shape != (height, width):
        raise ImageError(
            f"the {name} is {mask.shape[1]}x{mask.shape[0]} px, but its picture is {width}x{height} px: "
            "give a mask of the picture's own size"
        )
    return mask


def place_sketch_mask(mask: Array, box: Box, *, height: int, width: int) -> Array:
    """(1, 1, height, width) fp32 in [0, 1]: a sketch's mask (H, W) on the working area, where its sketch lies.

    box: the sketch's ``original_shape``. Around it everything is background.
    """
    placed = place_planes(mask[None], box, height=height, width=width, fill=0)
    return np.clip(placed, np.float32(0), np.float32(1))


def _levels_from_picture(source: Any, name: str) -> NDArray[Any]:
    """(H, W), (H, W, 3) or (H, W, 4) levels, upright; every check of ``read_image`` comes before the decoding."""
    with _opened(source) as image:
        try:
            rgb = read_image(image)
        except ImageError as error:
            raise ImageError(f"the {name}: {error}") from error
        if image.mode.startswith("I"):
            return np.asarray(_upright(image)).astype(np.uint16)
        return np.asarray(_upright(image).convert("RGBA")) if image.has_transparency_data else rgb


def _opened(source: Any) -> Any:
    """A Pillow image whose header alone has been read; whatever cannot be one fails in the words of ``read_image``."""
    if isinstance(source, Image.Image):
        return contextlib.nullcontext(source)
    if not isinstance(source, str | os.PathLike | bytes):
        raise TypeError(f"expected a path, bytes, a Pillow image or an array as a mask, got {type(source).__name__}")
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Exception:  # decoders of untrusted bytes raise nearly anything
        read_image(source)
        raise


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except SyntaxError:  # EXIF that cannot be parsed says nothing, as in read_image
        return image


def _mask_from_levels(levels: NDArray[Any], name: str) -> Array:
    if levels.ndim not in (2, 3) or (levels.ndim == 3 and levels.shape[2] not in (1, 3, 4)):
        raise ImageError(f"expected the {name} as (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {levels.shape}")
    unit = _unit_from_levels(levels, name)
    if levels.ndim == 2 or levels.shape[2] == 1:
        return unit.reshape(levels.shape[:2]).astype(np.float32)
    if levels.shape[2] == 4 and np.any(unit[..., 3] < 1):
        return unit[..., 3].astype(np.float32)
    return (unit[..., :3] @ _LUMA).astype(np.float32)


def _unit_from_levels(levels: NDArray[Any], name: str) -> NDArray[np.float64]:
    match levels.dtype.kind, levels.dtype.itemsize:
        case ("b", _) | ("u", 1 | 2):
            whole = 1 if levels.dtype.kind == "b" else np.iinfo(levels.dtype).max
            return levels.astype(np.float64) / whole
        case "f", _:
            if not np.all((levels >= 0) & (levels <= 1)):
                raise ImageError(f"a float {name} must lie in [0, 1], got {levels.min():g} to {levels.max():g}")
            return levels.astype(np.float64)
    raise ImageError(f"expected the {name} in bool, uint8, uint16 or float in [0, 1], got {levels.dtype}")

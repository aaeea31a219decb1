"""Reading and writing pictures safely, and the exact conversions between pixels and model values.

A file is judged by its header before any pixel is decoded: a 2 KiB WebP can ask for a gigabyte. What comes out of
:func:`read_image` is always straight 8-bit RGB on white paper, whatever mode, depth, profile or orientation went in.
"""

import io
import os
import secrets
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from saishiki.runtime.errors import ImageError

# TIFF is left out on purpose: libtiff is many codecs behind one name, and the source of most of Pillow's advisories.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MIN_SIDE_PX = 8
MAX_SIDE_PX = 8192
MAX_PIXELS = 4096 * 4096
_LIMITS = f"more than {MAX_SIDE_PX} px a side or {MAX_PIXELS / 1e6:.1f} megapixels: resize it first"

# A pixel is grey up to this distance between its largest and smallest channel; scans and JPEG never reach 0.
GREY_CHROMA = 32
INK_LEVEL, PAPER_LEVEL = 64, 200

_SAVE_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 1}),
    ".webp": ("WEBP", {"lossless": True, "method": 0}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
}
_GREY16_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_UNSUPPORTED_MODES = ("F", "LAB")

ImageSource = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]


def read_image(source: ImageSource) -> NDArray[np.uint8]:
    """The picture as (H, W, 3) uint8 RGB, upright, on white paper, in sRGB.

    source: a path, the bytes of a file (PNG, JPEG, WebP or BMP), a Pillow image, or an array of shape (H, W),
    (H, W, 1), (H, W, 3) or (H, W, 4) in uint8, uint16 or float in [0, 1].

    Transparency is composited on white, 16 bits are scaled (not clipped) to 8, EXIF orientation is applied, and an
    embedded profile is converted to sRGB; a profile or EXIF block that cannot be parsed is ignored, as browsers do, and
    so are the profiles of grey pictures. Of a multi-picture JPEG (phones) the main picture is read.

    Raises ``ImageError`` for a picture that is not one of these, damaged, animated, smaller than 8 px or larger than
    8192 px a side or 4096 x 4096 pixels (before decoding it), ``OSError`` (``FileNotFoundError``, ...) where the path
    cannot be opened, and ``TypeError`` for any other source.
    """
    if isinstance(source, np.ndarray):
        return _rgb_from_array(source)
    if isinstance(source, Image.Image):
        return _rgb_from_pil(source, f"the given {source.mode} image")
    if isinstance(source, bytes):
        return _rgb_from_stream(io.BytesIO(source), f"the given {len(source)} bytes")
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"expected a path, bytes, a Pillow image or an array, got {type(source).__name__}")
    with open(source, "rb") as stream:
        return _rgb_from_stream(stream, os.fspath(source))


def grey_from_rgb(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) uint8 luma, ``(19595 R + 38470 G + 7471 B + 32768) >> 16``: what Pillow's ``convert("L")`` gives.

    rgb: (..., 3) uint8. Raises ``ImageError`` for anything else.
    """
    _check_rgb(rgb)
    red, green, blue = (rgb[..., channel].astype(np.uint32) for channel in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)


def is_line_art(rgb: NDArray[np.uint8]) -> bool:
    """Whether the picture is already a line drawing: grey nearly everywhere, at least half paper, few mid-tones.

    True for binary drawings, inked pages with solid blacks, pencil scans and blank paper; False for colour drawings,
    photographs, gradients and tone-filled pages, whose lines must be extracted first. White lines on black are False
    too, because every model here reads black lines on white paper: invert such a picture rather than extract from it.

    rgb: (H, W, 3) uint8. Raises ``ImageError`` for anything else.
    """
    grey = grey_from_rgb(rgb)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    coloured = np.mean(brightest - darkest > GREY_CHROMA)
    paper = np.mean(grey >= PAPER_LEVEL)
    ink = np.mean(grey < INK_LEVEL)
    return bool(coloured <= 0.02 and paper >= 0.5 and 1 - paper - ink <= 0.25)


def normalized_from_uint8(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """``(v / 255 - 0.5) / 0.5`` in [-1, 1], float32, of the same shape (channels stay where they are)."""
    if pixels.dtype != np.uint8:
        raise ImageError(f"expected uint8 pixels, got {pixels.dtype}")
    half = np.float32(0.5)
    return (pixels.astype(np.float32) / np.float32(255) - half) / half


def uint8_from_normalized(x: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels (B, H, W, C) or (H, W, C) uint8: x clamped to [-1, 1], ``(x + 1) / 2 * 255``, truncated as published.

    x: (B, C, H, W) or (C, H, W), any float, computed in fp32. Raises ``ImageError`` where x has another form or holds
    NaN or infinite values. AnimeDiffusion 1582eb0, ``tensor2PIL``.
    """
    if x.ndim not in (3, 4) or x.dtype.kind != "f":
        raise ImageError(f"expected float (B, C, H, W) or (C, H, W), got {x.dtype} {x.shape}")
    broken = x.size - int(np.count_nonzero(np.isfinite(x)))
    if broken:
        raise ImageError(f"{broken} of the {x.size} output values are NaN or infinite: the engine overflowed, use fp32")
    levels = (np.clip(x.astype(np.float32), -1, 1) + np.float32(1)) / np.float32(2) * np.float32(255)
    return np.ascontiguousarray(np.moveaxis(levels.astype(np.uint8), -3, -1))


def check_output(image: NDArray[np.uint8]) -> None:
    """Raises ``ImageError`` where a generated image, (H, W, C) or one of (B, H, W, C), has one colour everywhere."""
    for i, pixels in enumerate(image.reshape(-1, *image.shape[-3:])):
        if np.all(pixels == pixels[0, 0]):
            raise ImageError(f"output image {i} is {pixels[0, 0].tolist()} at every pixel: its engine is broken")


def check_target(path: str | os.PathLike[str]) -> None:
    """Raises ``ImageError`` for a suffix that no picture is written as, ``FileNotFoundError`` for a missing folder."""
    path = Path(path)
    if path.suffix.lower() not in _SAVE_OPTIONS:
        raise ImageError(f"{path} has the suffix {path.suffix!r}: use one of {', '.join(_SAVE_OPTIONS)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: create it before writing {path.name}")


def write_image(path: str | os.PathLike[str], pixels: NDArray[np.uint8]) -> None:
    """Writes (H, W, 3) or (H, W) uint8 pixels as .png, .webp (both lossless) or .jpg (quality 95), whole or not at all.

    The file appears under its name only when it is complete. Raises ``ImageError`` for another suffix or other pixels
    and ``FileNotFoundError`` where the folder is missing, both before any work.
    """
    path = Path(path)
    check_target(path)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ImageError(f"expected uint8 pixels (H, W, 3) or (H, W), got {pixels.dtype} {pixels.shape}")
    format_name, options = _SAVE_OPTIONS[path.suffix.lower()]
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        # Opened plainly, not through tempfile, so that the file gets the caller's usual permissions.
        with open(partial, "xb") as stream:
            Image.fromarray(pixels).save(stream, format_name, **options)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _check_rgb(rgb: NDArray[Any]) -> None:
    if rgb.dtype != np.uint8 or rgb.ndim < 3 or rgb.shape[-1] != 3:
        raise ImageError(f"expected uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}")


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"{name} is {width}x{height} px: at least {MIN_SIDE_PX} px a side are needed")
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        raise ImageError(f"{name} is {width}x{height} px, {_LIMITS}")


def _rgb_from_stream(stream: BinaryIO, name: str) -> NDArray[np.uint8]:
    try:
        image = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} has {_LIMITS}") from error
    except Exception as error:  # decoders of untrusted bytes raise nearly anything
        raise ImageError(f"{name} is not a readable picture: expected one of {', '.join(FORMATS)}") from error
    with image:
        return _rgb_from_pil(image, name)


def _rgb_from_pil(image: Image.Image, name: str) -> NDArray[np.uint8]:
    _check_size(*image.size, name)
    # The further pictures of an MPO are depth maps or thumbnails, not an animation.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"{name} is animated ({frames} frames): save the frame you mean as a picture of its own")
    if image.mode in _UNSUPPORTED_MODES:
        raise ImageError(f"{name} has the mode {image.mode}, which is not supported: convert it to RGB first")
    try:
        image.load()
    except Exception as error:  # as above
        raise ImageError(f"{name} is damaged or cut short: {error}") from error
    image = _upright(image)
    if image.mode in _GREY16_MODES:
        return _rgb_from_grey16(image, name)
    return _rgb_from_colour(image)


def _upright(image: Image.Image) -> Image.Image:
    """The loaded image turned as its EXIF says; EXIF that cannot be parsed says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except SyntaxError:
        return image


def _rgb_from_grey16(image: Image.Image, name: str) -> NDArray[np.uint8]:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ImageError(f"{name} has levels from {levels.min()} to {levels.max()}: expected 16 bits, 0 to 65535")
    if "transparency" in image.info:
        levels[levels == image.info["transparency"]] = 65535
    return np.repeat(_uint8_from_uint16(levels)[..., None], 3, axis=2)


def _rgb_from_colour(image: Image.Image) -> NDArray[np.uint8]:
    profile = image.info.get("icc_profile")
    if not image.has_transparency_data:
        return np.array(_srgb_from_profile(image, profile))
    rgba = image.convert("RGBA")
    opaque = _srgb_from_profile(rgba.convert("RGB"), profile)
    opaque.paste((255, 255, 255), mask=ImageOps.invert(rgba.getchannel("A")))
    return np.array(opaque)


def _srgb_from_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image in RGB, through its embedded ICC profile unless there is none, it is sRGB, or it does not apply."""
    colours = image if image.mode == "CMYK" else image.convert("RGB")
    if not profile:
        return colours.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return colours.convert("RGB")
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(colours, source, target, outputMode="RGB") or colours.convert("RGB")
    except (ImageCms.PyCMSError, OSError):
        return colours.convert("RGB")


def _rgb_from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}")
    _check_size(array.shape[1], array.shape[0], "the given array")
    pixels = _uint8_from_array(array).reshape(*array.shape[:2], -1)
    if pixels.shape[2] == 4:
        return _rgb_from_colour(Image.fromarray(np.ascontiguousarray(pixels)))
    return np.array(np.broadcast_to(pixels, (*array.shape[:2], 3)))


def _uint8_from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    match array.dtype.kind, array.dtype.itemsize:
        case "u", 1:
            return array
        case "u", 2:
            return _uint8_from_uint16(array)
        case "f", _:
            if not (array.min() >= 0 and array.max() <= 1):
                raise ImageError(f"a float array must lie in [0, 1], got {array.min():g} to {array.max():g}")
            return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    raise ImageError(f"expected an array of uint8, uint16 or float in [0, 1], got {array.dtype}")


def _uint8_from_uint16(levels: NDArray[Any]) -> NDArray[np.uint8]:
    return ((levels.astype(np.int64) + 128) // 257).astype(np.uint8)

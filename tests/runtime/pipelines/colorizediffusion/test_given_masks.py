import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from saishiki.runtime.errors import ImageError
from saishiki.runtime.pipelines.colorizediffusion.given_masks import place_sketch_mask, read_mask

HEIGHT, WIDTH = 12, 20
GREY8 = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
GREY16 = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
UNIT8, UNIT16 = GREY8 / np.float32(255), GREY16 / np.float32(65535)
COLOURS = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def read(source: object) -> np.ndarray:
    return read_mask(source, height=HEIGHT, width=WIDTH, name="sketch mask")


def png(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def with_alpha(alpha: np.ndarray) -> np.ndarray:
    return np.concatenate([COLOURS, alpha[..., None]], axis=2)


PALETTED = Image.fromarray(np.where(GREY8 > 127, 0, 1).astype(np.uint8), "P")
PALETTED.putpalette([255, 0, 0, 0, 0, 255])

SOURCES = {
    "grey": (GREY8, UNIT8),
    "grey with an axis": (GREY8[..., None], UNIT8),
    "grey as RGB": (np.repeat(GREY8[..., None], 3, axis=2), UNIT8),
    "grey as opaque RGBA": (np.dstack([GREY8] * 3 + [np.full_like(GREY8, 255)]), UNIT8),
    "16 bits": (GREY16, UNIT16),
    "floats": (UNIT16, UNIT16),
    "bool": (GREY8 > 127, (GREY8 > 127).astype(np.float32)),
    "transparent array": (with_alpha(GREY8), UNIT8),
    "Pillow L": (Image.fromarray(GREY8), UNIT8),
    "Pillow 1": (Image.fromarray(GREY8 > 127), (GREY8 > 127).astype(np.float32)),
    "Pillow RGBA": (Image.fromarray(with_alpha(GREY8)), UNIT8),
    "Pillow LA": (Image.fromarray(with_alpha(GREY8)).convert("LA"), UNIT8),
    "PNG": (png(Image.fromarray(GREY8)), UNIT8),
    "PNG of 16 bits": (png(Image.fromarray(GREY16)), UNIT16),
    "transparent PNG": (png(Image.fromarray(with_alpha(GREY8))), UNIT8),
    "PNG with a transparent colour": (png(PALETTED, transparency=1), (GREY8 > 127).astype(np.float32)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_read_mask_keeps_the_levels_of(name: str) -> None:
    source, want = SOURCES[name]
    got = read(source)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


def test_read_mask_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(png(Image.fromarray(GREY16)))
    np.testing.assert_array_equal(read(path), UNIT16)
    np.testing.assert_array_equal(read(str(path)), UNIT16)


def test_read_mask_of_colours_is_their_luma() -> None:
    want = COLOURS.astype(np.float64) @ [0.299, 0.587, 0.114] / 255
    np.testing.assert_allclose(read(COLOURS), want, atol=1e-5)
    np.testing.assert_allclose(read(Image.fromarray(COLOURS)), want, atol=1e-5)


def test_read_mask_turns_the_picture_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for grey, unit in ((GREY8, UNIT8), (GREY16, UNIT16)):
        stored = Image.fromarray(np.ascontiguousarray(np.rot90(grey)))
        np.testing.assert_array_equal(read(png(stored, exif=exif)), unit)


def test_read_mask_of_a_cmyk_jpeg() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.where(np.arange(WIDTH) < 8, 0, 255).astype(np.uint8)[None].repeat(HEIGHT, 0)).convert(
        "CMYK"
    ).save(stream, "JPEG", quality=100)
    got = read(stream.getvalue())
    assert got[:, :8].max() < 0.1
    assert got[:, 8:].min() > 0.9


@pytest.mark.parametrize("source", [GREY8.T, Image.fromarray(GREY8.T), png(Image.fromarray(GREY8.T))], ids=type)
def test_read_mask_of_another_size_names_both(source: object) -> None:
    with pytest.raises(ImageError, match="sketch mask is 12x20 px, but its picture is 20x12 px: give a mask of the"):
        read(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((HEIGHT, WIDTH), 1.5, np.float32), r"a float sketch mask must lie in \[0, 1\], got 1.5"),
        (np.full((HEIGHT, WIDTH), np.nan, np.float32), r"a float sketch mask must lie in \[0, 1\], got nan"),
        (np.zeros((HEIGHT, WIDTH), np.int32), "expected the sketch mask in bool, uint8, uint16 or float"),
        (np.zeros((HEIGHT, WIDTH, 2), np.uint8), r"expected the sketch mask as \(H, W\), .* got \(12, 20, 2\)"),
        (b"not a picture", "not a readable picture"),
        (Image.new("L", (4, 4)), "the sketch mask: the given L image is 4x4 px"),
        (png(Image.fromarray(GREY8))[:60], "the sketch mask: .* damaged or cut short"),
    ],
)
def test_read_mask_refuses(source: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read(source)


def test_read_mask_refuses_a_huge_picture_by_its_header() -> None:
    stream = io.BytesIO()
    Image.fromarray(GREY8).save(stream, "BMP")
    huge = stream.getvalue().replace(struct.pack("<ii", WIDTH, HEIGHT), struct.pack("<ii", 30000, 30000))
    with pytest.raises(ImageError, match="megapixels: resize it first"):
        read(huge)


def test_read_mask_refuses_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a path, bytes, a Pillow image or an array as a mask, got int"):
        read(7)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.png")


def test_place_sketch_mask_lies_where_its_sketch_lies() -> None:
    mask = (GREY8 > 127).astype(np.float32)
    placed = place_sketch_mask(mask, (0, 13, 64, 38), height=64, width=64)
    want = F.interpolate(torch.from_numpy(mask)[None, None], (38, 64), mode="bicubic", antialias=True)
    assert want.max() > 1
    np.testing.assert_allclose(placed[..., 13:51, :], want.clamp(0, 1).numpy(), atol=2e-6)
    assert not placed[..., :13, :].any()
    assert not placed[..., 51:, :].any()

import io
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from saishiki.runtime import images
from saishiki.runtime.errors import ImageError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def noise(height=16, width=24, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image, format_name="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour_type, rows=b"", extra=b""):
    """A PNG by hand: Pillow cannot write 16-bit colour, nor a header without its pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png16(levels, colour_type, extra=b""):
    """A 16-bit PNG of levels (H, W, C)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return png(levels.shape[1], levels.shape[0], 16, colour_type, rows, extra)


def swapped_profile():
    """An RGB profile that is not sRGB: its red and green primaries are exchanged."""
    raw = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(raw[i : i + 4]): i for i in range(132, 132 + 12 * struct.unpack(">I", raw[128:132])[0], 12)}
    red, green = tags[b"rXYZ"] + 4, tags[b"gXYZ"] + 4
    raw[red : red + 8], raw[green : green + 8] = raw[green : green + 8], raw[red : red + 8]
    return bytes(raw).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


# read_image: files


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "BMP"])
def test_read_image_lossless_formats(format_name):
    options = {"lossless": True} if format_name == "WEBP" else {}
    rgb = noise()
    np.testing.assert_array_equal(images.read_image(encoded(Image.fromarray(rgb), format_name, **options)), rgb)


def test_read_image_jpeg_is_close():
    flat = np.full((16, 16, 3), (200, 120, 40), np.uint8)
    read = images.read_image(encoded(Image.fromarray(flat), "JPEG", quality=95))
    assert np.abs(read.astype(int) - flat).max() <= 2


@pytest.mark.parametrize("form", ["str", "path", "bytes", "pillow"])
def test_read_image_sources(form, tmp_path):
    rgb, path = noise(), tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    source = {"str": str(path), "path": path, "bytes": path.read_bytes(), "pillow": Image.fromarray(rgb)}[form]
    read = images.read_image(source)
    np.testing.assert_array_equal(read, rgb)
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    assert read.flags.writeable


def test_read_image_leaves_the_given_pillow_image_alone():
    image = Image.new("LA", (9, 9), (0, 0))
    image.getexif()[0x0112] = 6
    images.read_image(image)
    assert (image.mode, image.size, image.getexif()[0x0112]) == ("LA", (9, 9), 6)


def test_read_image_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        images.read_image(tmp_path / "nothing.png")


@pytest.mark.parametrize("source", [None, 3, io.BytesIO()], ids=["none", "int", "stream"])
def test_read_image_other_source(source):
    with pytest.raises(TypeError, match="expected a path, bytes, a Pillow image or an array"):
        images.read_image(source)


# read_image: what is refused


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "magic"])
def test_read_image_not_a_picture(content, tmp_path):
    path = tmp_path / "sketch.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"sketch\.png is not a readable picture: expected one of PNG, JPEG"):
        images.read_image(path)


@pytest.mark.parametrize("format_name", ["GIF", "TIFF", "PPM"])
def test_read_image_other_formats(format_name):
    with pytest.raises(ImageError, match=r"the given \d+ bytes is not a readable picture"):
        images.read_image(encoded(Image.fromarray(noise()), format_name))


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "BMP"])
def test_read_image_cut_short(format_name, tmp_path):
    content = encoded(Image.fromarray(noise(64, 64)), format_name)
    path = tmp_path / "half"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"half is (damaged or cut short|not a readable picture)"):
        images.read_image(path)


def test_read_image_flipped_bit():
    content = bytearray(encoded(Image.fromarray(noise(64, 64))))
    content[len(content) // 2] ^= 1
    with pytest.raises(ImageError, match="damaged or cut short"):
        images.read_image(bytes(content))


@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_read_image_animated(format_name):
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    content = encoded(frames[0], format_name, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"is animated \(3 frames\)"):
        images.read_image(content)


def test_read_image_animated_pillow_gif():
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(2)]
    gif = Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    with pytest.raises(ImageError, match=r"the given (P|RGB) image is animated \(2 frames\)"):
        images.read_image(gif)


def test_read_image_multi_picture_jpeg_reads_the_first():
    main, depth = Image.new("RGB", (16, 16), (0, 0, 255)), Image.new("RGB", (16, 16))
    read = images.read_image(encoded(main, "MPO", save_all=True, append_images=[depth]))
    assert np.abs(read.astype(int) - (0, 0, 255)).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_read_image_too_small(size):
    with pytest.raises(ImageError, match=f"is {size[0]}x{size[1]} px: at least 8 px a side are needed"):
        images.read_image(encoded(Image.new("RGB", size)))


def test_read_image_smallest():
    assert images.read_image(encoded(Image.new("L", (8, 8)))).shape == (8, 8, 3)


def test_read_image_too_wide():
    with pytest.raises(ImageError, match=r"is 20000x16 px, more than 8192 px a side or 16\.8 megapixels: resize it"):
        images.read_image(encoded(Image.new("L", (20000, 16))))


@pytest.mark.parametrize("size", [(4097, 4096), (8192, 2049)])
def test_read_image_too_many_pixels(size):
    with pytest.raises(ImageError, match=f"is {size[0]}x{size[1]} px, more than"):
        images.read_image(png(*size, 8, 2))


@pytest.mark.parametrize(("width", "height"), [(8000, 8000), (9000, 10000), (30000, 30000)], ids=["64", "90", "900"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_read_image_bomb_is_refused_before_decoding(width, height, monkeypatch):
    def decode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"more than 8192 px a side or 16\.8 megapixels"):
            images.read_image(png(width, height, 8, 2))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_read_image_bomb_where_warnings_are_errors():
    with pytest.raises(ImageError, match=r"16\.8 megapixels"):
        images.read_image(png(9000, 10000, 8, 2))


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_read_image_unsupported_mode(mode):
    with pytest.raises(ImageError, match=f"has the mode {mode}, which is not supported: convert it to RGB first"):
        images.read_image(Image.new(mode, (9, 9)))


# read_image: transparency


def transparent_picture(mode):
    """Left half transparent black, right half opaque red (grey modes: opaque 90)."""
    rgba = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
    rgba.paste((*RED, 255) if mode in ("RGBA", "P") else (90, 90, 90, 255), (8, 0, 16, 8))
    if mode == "P":
        indexed = Image.new("P", (16, 8), 0)
        indexed.putpalette([0, 0, 0, *RED])
        indexed.paste(1, (8, 0, 16, 8))
        return encoded(indexed, transparency=0)
    return encoded(rgba.convert(mode))


@pytest.mark.parametrize(("mode", "opaque"), [("RGBA", RED), ("P", RED), ("LA", (90, 90, 90))])
def test_read_image_transparent_paper_is_white(mode, opaque):
    read = images.read_image(transparent_picture(mode))
    np.testing.assert_array_equal(read[:, :8], np.broadcast_to(WHITE, (8, 8, 3)))
    np.testing.assert_array_equal(read[:, 8:], np.broadcast_to(opaque, (8, 8, 3)))


@pytest.mark.parametrize(("colour_type", "depth"), [(0, 8), (2, 8), (0, 16)], ids=["grey8", "rgb8", "grey16"])
def test_read_image_transparent_colour_of_a_png(colour_type, depth):
    channels, peak = (1 if colour_type == 0 else 3), 2**depth - 1
    levels = np.full((8, 8, channels), peak // 5)
    levels[0, 0] = 7
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in levels)
    extra = png_chunk(b"tRNS", struct.pack(f">{channels}H", *[7] * channels))
    read = images.read_image(png(8, 8, depth, colour_type, rows, extra))
    assert read[0, 0].tolist() == [255, 255, 255]
    assert read[0, 1].tolist() == [51, 51, 51]


def test_read_image_half_transparent_mixes_with_white():
    read = images.read_image(encoded(Image.new("RGBA", (8, 8), (0, 100, 200, 128))))
    expected = np.array([0, 100, 200]) * 128 / 255 + 255 * 127 / 255
    assert np.abs(read - expected).max() <= 0.5


# read_image: depth and colour


@pytest.mark.parametrize(("mode", "value", "level"), [("1", 1, 255), ("1", 0, 0), ("L", 90, 90), ("I", 257 * 90, 90)])
def test_read_image_grey_modes(mode, value, level):
    read = images.read_image(Image.new(mode, (9, 8), value))
    np.testing.assert_array_equal(read, np.full((8, 9, 3), level))


def test_read_image_16_bit_grey_is_scaled():
    levels = np.linspace(0, 65535, 128).astype(np.uint16).reshape(8, 16, 1)
    read = images.read_image(png16(levels, 0))
    np.testing.assert_array_equal(read, np.repeat(np.rint(levels / 257), 3, axis=2))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4)], ids=["rgb", "rgba"])
def test_read_image_16_bit_colour_is_scaled(colour_type, channels):
    levels = np.random.default_rng(0).integers(0, 65536, (9, 9, channels))
    levels[..., 3:] = 65535
    read = images.read_image(png16(levels, colour_type))
    assert np.abs(read - levels[..., :3] / 257).max() <= 1


@pytest.mark.parametrize("value", [-1, 65536])
def test_read_image_integer_mode_out_of_range(value):
    with pytest.raises(ImageError, match=f"has levels from {value} to {value}: expected 16 bits"):
        images.read_image(Image.new("I", (9, 9), value))


def test_read_image_cmyk_jpeg():
    read = images.read_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(read.astype(int) - RED).max() <= 3


def test_read_image_converts_an_embedded_profile():
    picture = Image.new("RGB", (8, 8), (200, 30, 30))
    read = images.read_image(encoded(picture, icc_profile=swapped_profile()))
    assert np.abs(read.astype(int) - (30, 200, 30)).max() <= 1


def test_read_image_converts_under_transparency():
    picture = Image.new("RGBA", (8, 8), (200, 30, 30, 255))
    picture.putpixel((0, 0), (200, 30, 30, 0))
    read = images.read_image(encoded(picture, icc_profile=swapped_profile())).astype(int)
    assert np.abs(read[1, 1] - (30, 200, 30)).max() <= 1
    assert read[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("profile", [b"junk", b"x" * 400], ids=["short", "long"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_read_image_ignores_a_broken_profile(profile, mode):
    picture = Image.new(mode, (8, 8), 77)
    read = images.read_image(encoded(picture, icc_profile=profile))
    np.testing.assert_array_equal(read, np.asarray(picture.convert("RGB")))


def test_read_image_ignores_a_profile_of_another_colour_space():
    rgb = noise()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(images.read_image(encoded(Image.fromarray(rgb), icc_profile=profile)), rgb)


def test_read_image_srgb_profile_changes_nothing():
    rgb = noise()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(images.read_image(encoded(Image.fromarray(rgb), icc_profile=profile)), rgb)


# read_image: orientation


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_read_image_applies_orientation(mode):
    stored = Image.new(mode, (16, 8))
    stored.putpixel((0, 0), RED if mode == "RGB" else 65535)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: to be turned clockwise
    read = images.read_image(encoded(stored, exif=exif))
    assert read.shape == (16, 8, 3)
    assert np.argwhere(read[..., 0] == 255).tolist() == [[0, 7]]


def test_read_image_jpeg_orientation():
    exif = Image.Exif()
    exif[0x0112] = 8
    content = encoded(Image.new("RGB", (32, 16)), "JPEG", exif=exif)
    assert images.read_image(content).shape == (32, 16, 3)


@pytest.mark.parametrize("junk", [b"Exif\0\0junkjunk", b"Exif\0\0II*\0\xff\xff\xff\xff"], ids=["header", "offset"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_read_image_ignores_broken_exif(junk):
    rgb = noise()
    np.testing.assert_array_equal(images.read_image(encoded(Image.fromarray(rgb), exif=junk)), rgb)


# read_image: arrays


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 3), (8, 9, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float16, np.float32, np.float64])
def test_read_image_arrays(shape, dtype):
    levels = np.random.default_rng(0).integers(0, 256, shape)
    if shape[2:] == (4,):
        levels[..., 3] = 255
    kind, itemsize = np.dtype(dtype).kind, np.dtype(dtype).itemsize
    array = (levels / 255 if kind == "f" else levels * (257 if itemsize == 2 else 1)).astype(dtype)
    expected = np.broadcast_to(levels.reshape(8, 9, -1)[..., :3], (8, 9, 3))
    np.testing.assert_array_equal(images.read_image(array), expected)


def test_read_image_transparent_array_is_white():
    np.testing.assert_array_equal(images.read_image(np.zeros((8, 8, 4), np.uint8)), np.full((8, 8, 3), 255))


def test_read_image_does_not_alias_its_array():
    array = noise()
    images.read_image(array)[:] = 0
    np.testing.assert_array_equal(array, noise())


@pytest.mark.parametrize("shape", [(64,), (3, 64, 64), (8, 8, 2), (1, 8, 8, 3)])
def test_read_image_array_shape(shape):
    with pytest.raises(ImageError, match=r"expected an array \(H, W\), .*, got \("):
        images.read_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_, np.complex64, "U1"])
def test_read_image_array_dtype(dtype):
    with pytest.raises(ImageError, match="expected an array of uint8, uint16 or float"):
        images.read_image(np.zeros((8, 8), dtype))


@pytest.mark.parametrize(("value", "named"), [(np.nan, "nan"), (1.01, "1.01"), (-0.5, "-0.5"), (255, "255")])
def test_read_image_float_array_range(value, named):
    array = np.zeros((8, 8, 3))
    array[3, 4, 1] = value
    with pytest.raises(ImageError, match=rf"a float array must lie in \[0, 1\], got .*{named}"):
        images.read_image(array)


@pytest.mark.parametrize("shape", [(8, 8193), (4096, 4097, 3), (7, 8), (0, 8)])
def test_read_image_array_size(shape):
    with pytest.raises(ImageError, match=f"the given array is {shape[1]}x{shape[0]} px"):
        images.read_image(np.broadcast_to(np.uint8(0), shape))


# grey_from_rgb


def test_grey_from_rgb_is_pillows():
    rgb = noise(256, 256)
    np.testing.assert_array_equal(images.grey_from_rgb(rgb), np.asarray(Image.fromarray(rgb).convert("L")))


@pytest.mark.parametrize("array", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3))], ids=["grey", "float"])
def test_grey_from_rgb_other_pixels(array):
    with pytest.raises(ImageError, match=r"expected uint8 \(H, W, 3\), got"):
        images.grey_from_rgb(array)


# is_line_art


def lines(ink, paper=(255, 255, 255)):
    page = np.full((96, 96, 3), paper, np.uint8)
    page[10:90, 20:24] = ink
    page[40:43, 5:80] = ink
    return page


def with_block(page, colour, rows):
    page[:rows] = colour
    return page


def grey_ramp():
    return np.repeat(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (96, 1))[..., None], 3, axis=2)


LINE_ART = {
    "binary": lines((0, 0, 0)),
    "blank": np.full((16, 16, 3), 255, np.uint8),
    "pencil": lines((130, 130, 130), paper=(238, 238, 238)),
    "tinted_scan": lines((40, 38, 36), paper=(250, 244, 232)),
    "solid_blacks": with_block(lines((0, 0, 0)), (0, 0, 0), 40),
    "a_red_stamp": with_block(lines((0, 0, 0)), (200, 0, 0), 1),
}
NOT_LINE_ART = {
    "coloured_face": with_block(lines((0, 0, 0)), (255, 224, 196), 30),
    "coloured_lines": lines((40, 60, 220)),
    "photo": noise(96, 96),
    "grey_noise": np.repeat(noise(96, 96, 1), 3, axis=2),
    "gradient": grey_ramp(),
    "tone_filled": with_block(lines((0, 0, 0)), (150, 150, 150), 40),
    "white_on_black": 255 - lines((0, 0, 0)),
    "grey_paper": lines((0, 0, 0), paper=(180, 180, 180)),
}


@pytest.mark.parametrize("name", LINE_ART)
def test_is_line_art_yes(name):
    assert images.is_line_art(LINE_ART[name]) is True


@pytest.mark.parametrize("name", NOT_LINE_ART)
def test_is_line_art_no(name):
    assert images.is_line_art(NOT_LINE_ART[name]) is False


def test_is_line_art_survives_jpeg():
    assert images.is_line_art(images.read_image(encoded(Image.fromarray(lines((0, 0, 0))), "JPEG", quality=50)))


# normalized_from_uint8, uint8_from_normalized


def test_normalized_from_uint8_all_levels():
    levels = np.arange(256, dtype=np.uint8)
    normalized = images.normalized_from_uint8(levels)
    assert normalized.dtype == np.float32
    assert normalized[[0, 255]].tolist() == [-1, 1]
    np.testing.assert_allclose(normalized, levels / 127.5 - 1, rtol=0, atol=1.2e-7)


def test_normalized_from_uint8_other_dtype():
    with pytest.raises(ImageError, match="expected uint8 pixels, got float32"):
        images.normalized_from_uint8(np.zeros(3, np.float32))


def test_uint8_from_normalized_clamps_and_truncates():
    x = np.array([-3, -1, -0.5, 0, 0.999, 1, 1.004, 7], np.float32).reshape(1, 2, 4)
    assert images.uint8_from_normalized(x).ravel().tolist() == [0, 0, 63, 127, 254, 255, 255, 255]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_uint8_from_normalized_moves_channels_last(dtype):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 5)).astype(dtype)
    levels = images.uint8_from_normalized(x)
    assert levels.shape == (2, 4, 5, 3)
    assert levels[1, 2, 3, 0] == int((np.float32(x[1, 0, 2, 3]) + 1) / 2 * 255)
    np.testing.assert_array_equal(images.uint8_from_normalized(x[1]), levels[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_uint8_from_normalized_not_finite(value):
    x = np.zeros((1, 3, 8, 8), np.float16)
    x[0, 0, 0, :2] = value
    with pytest.raises(ImageError, match="2 of the 192 output values are NaN or infinite"):
        images.uint8_from_normalized(x)


@pytest.mark.parametrize("x", [np.zeros((8, 8)), np.zeros((3, 8, 8), np.int32)], ids=["flat", "int"])
def test_uint8_from_normalized_other_forms(x):
    with pytest.raises(ImageError, match=r"expected float \(B, C, H, W\) or \(C, H, W\), got"):
        images.uint8_from_normalized(x)


# check_output


def test_check_output_uniform_image_is_named():
    batch = np.stack([noise(), np.full((16, 24, 3), (127, 0, 255), np.uint8)])
    with pytest.raises(ImageError, match=r"output image 1 is \[127, 0, 255\] at every pixel"):
        images.check_output(batch)


def test_check_output_one_pixel_is_enough():
    image = np.full((8, 8, 3), 9, np.uint8)
    with pytest.raises(ImageError, match="output image 0 is"):
        images.check_output(image)
    image[7, 7, 2] = 8
    assert images.check_output(image) is None


# write_image


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.PNG"])
@pytest.mark.parametrize("channels", [0, 3], ids=["grey", "rgb"])
def test_write_image_lossless(name, channels, tmp_path):
    pixels = noise() if channels else noise()[..., 0]
    images.write_image(tmp_path / name, pixels)
    np.testing.assert_array_equal(images.read_image(tmp_path / name), np.broadcast_to(pixels.T, (3, 24, 16)).T)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_write_image_jpeg(tmp_path):
    images.write_image(str(tmp_path / "a.jpg"), np.full((16, 16, 3), 90, np.uint8))
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "JPEG"
        assert image.getpixel((3, 3)) == (90, 90, 90)


def test_write_image_has_the_usual_permissions(tmp_path):
    umask = os.umask(0o022)
    try:
        images.write_image(tmp_path / "a.png", noise())
    finally:
        os.umask(umask)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o644


def test_write_image_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    images.write_image(path, noise())

    def fail_half_way(_image, stream, *_args, **_options):
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        images.write_image(path, noise(seed=1))
    monkeypatch.undo()
    np.testing.assert_array_equal(images.read_image(path), noise())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_write_image_unknown_suffix(name, tmp_path):
    with pytest.raises(ImageError, match=r"use one of \.png, \.webp, \.jpg, \.jpeg"):
        images.write_image(tmp_path / name, noise())
    assert list(tmp_path.iterdir()) == []


def test_write_image_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*none does not exist: create it before writing a\.png"):
        images.write_image(tmp_path / "none" / "a.png", noise())


@pytest.mark.parametrize("pixels", [np.zeros((8, 8, 3)), np.zeros((1, 8, 8), np.uint8)], ids=["float", "planes"])
def test_write_image_other_pixels(pixels, tmp_path):
    with pytest.raises(ImageError, match=r"expected uint8 pixels \(H, W, 3\) or \(H, W\), got"):
        images.write_image(tmp_path / "a.png", pixels)

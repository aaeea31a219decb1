import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saishiki.runtime.canvas import Canvas, fit_canvas, place, restore
from saishiki.runtime.errors import ImageError

MODES = ["pad", "crop", "stretch"]
sides = st.integers(8, 600)
targets = st.sampled_from([32, 64, 104])
modes = st.sampled_from(MODES)


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def square(size, mode, width, height):
    return fit_canvas(width, height, target_height=size, target_width=size, mode=mode)


# fit_canvas


@pytest.mark.parametrize(
    ("mode", "width", "height", "resized", "corner"),
    [
        ("pad", 1000, 500, (256, 128), (0, 64)),
        ("pad", 500, 1000, (128, 256), (64, 0)),
        ("pad", 100, 75, (256, 192), (0, 32)),
        ("pad", 1000, 1, (256, 1), (0, 128)),
        ("crop", 1000, 500, (512, 256), (-128, 0)),
        ("crop", 300, 449, (256, 383), (0, -64)),  # 383.1 truncated; 63.5 rounds to even
        ("crop", 300, 451, (256, 384), (0, -64)),
        ("crop", 300, 452, (256, 385), (0, -64)),  # 64.5 rounds to even
        ("stretch", 1000, 500, (256, 256), (0, 0)),
    ],
)
def test_fit_canvas_square(mode, width, height, resized, corner):
    canvas = square(256, mode, width, height)
    assert (canvas.resized_width, canvas.resized_height) == resized
    assert (canvas.left, canvas.top) == corner


def test_fit_canvas_crop_to_a_wide_area():
    assert fit_canvas(100, 100, target_height=64, target_width=128, mode="crop") == Canvas(
        source_height=100,
        source_width=100,
        height=64,
        width=128,
        resized_height=128,
        resized_width=128,
        top=-32,
        left=0,
    )


@pytest.mark.parametrize(
    ("mode", "region"),
    [("pad", (0, 0, 95, 70)), ("crop", (13, 0, 82, 70)), ("stretch", (0, 0, 95, 70))],
)
def test_canvas_region(mode, region):
    # crop: 11 of 86 columns are lost on the left, which is 12.15 of 95.
    assert square(64, mode, 95, 70).region == region


@pytest.mark.parametrize(("height", "width"), [(100, 64), (64, 100), (0, 64), (-64, 64)])
def test_fit_canvas_working_size(height, width):
    with pytest.raises(ValueError, match=f"the working size {width}x{height} is not a positive multiple of 8"):
        fit_canvas(64, 64, target_height=height, target_width=width)


def test_fit_canvas_other_multiple():
    with pytest.raises(ValueError, match="not a positive multiple of 64"):
        fit_canvas(64, 64, target_height=96, target_width=64, multiple=64)


def test_fit_canvas_unknown_mode():
    with pytest.raises(ValueError, match="unknown mode 'cover': use pad, crop or stretch"):
        square(64, "cover", 64, 64)


def test_fit_canvas_no_pixels():
    with pytest.raises(ImageError, match="a picture of 0x64 px has no pixels"):
        square(64, "pad", 0, 64)


@pytest.mark.parametrize(("width", "height"), [(8192, 8), (8, 8192)])
def test_fit_canvas_crop_of_a_strip(width, height):
    with pytest.raises(ImageError, match=f"{width}x{height} px is too long a strip .* 512x512 px by cropping"):
        square(512, "crop", width, height)
    assert square(512, "pad", width, height).region == (0, 0, width, height)


def test_fit_canvas_crop_that_keeps_no_whole_pixel():
    with pytest.raises(ImageError, match="too long a strip"):
        fit_canvas(8, 100, target_height=8, target_width=1024, mode="crop")


def test_fit_canvas_limit_is_for_crops_only():
    assert square(8192, "pad", 8, 8).resized_width == 8192


# place


def published(image, size):
    """Shorter side to ``size``, longer side truncated, centre crop: Pillow step by step."""
    height, width = image.shape[:2]
    resized = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    left, top = (round((side - size) / 2) for side in resized)
    picture = Image.fromarray(image).resize(resized, Image.Resampling.BILINEAR)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("shape", [(70, 95), (95, 70), (33, 200), (64, 65), (41, 40), (300, 300)])
@pytest.mark.parametrize("channels", [0, 3], ids=["grey", "rgb"])
def test_place_crop_is_the_published_path(shape, channels):
    image = noise(*shape) if channels else noise(*shape)[..., 0]
    canvas = square(64, "crop", shape[1], shape[0])
    np.testing.assert_array_equal(place(canvas, image, fill=255), published(image, 64))


@pytest.mark.parametrize("channels", [0, 3], ids=["grey", "rgb"])
def test_place_pads_with_a_level(channels):
    image = np.full((40, 80, 3)[: 3 if channels else 2], 10, np.uint8)
    placed = place(square(64, "pad", 80, 40), image, fill=255)
    assert (placed[:16] == 255).all()
    assert (placed[48:] == 255).all()
    assert (placed[16:48] == 10).all()


def test_place_pads_with_the_edge():
    image = noise(32, 64)
    placed = place(square(64, "pad", 64, 32), image, fill="edge")
    np.testing.assert_array_equal(placed[:16], np.broadcast_to(image[0], (16, 64, 3)))
    np.testing.assert_array_equal(placed[48:], np.broadcast_to(image[-1], (16, 64, 3)))
    np.testing.assert_array_equal(placed[16:48], image)


@pytest.mark.parametrize(
    "image", [np.zeros((40, 81, 3), np.uint8), np.zeros((40, 80, 4), np.uint8), np.zeros((40, 80))]
)
def test_place_other_image(image):
    with pytest.raises(ImageError, match=r"expected uint8 \(40, 80, 3\) or \(40, 80\), got"):
        place(square(64, "pad", 80, 40), image, fill=255)


# restore


def test_restore_other_image():
    with pytest.raises(ImageError, match=r"expected uint8 \(64, 64, 3\) or \(64, 64\), got uint8 \(40, 80, 3\)"):
        restore(square(64, "pad", 80, 40), np.zeros((40, 80, 3), np.uint8))


def test_restore_does_not_reach_into_the_padding():
    canvas = square(64, "pad", 300, 150)
    working = np.zeros((64, 64, 3), np.uint8)
    working[16:48] = 200
    np.testing.assert_array_equal(restore(canvas, working), np.full((150, 300, 3), 200))


@pytest.mark.parametrize("axis", [0, 1])
def test_restore_is_aligned_after_a_crop(axis):
    # A ramp of 2.6 levels a pixel: a shift of half a pixel would be seen.
    ramp = np.linspace(0, 250, 95).astype(np.uint8)
    image = np.tile(ramp, (70, 1)) if axis == 1 else np.tile(ramp[:, None], (1, 70))
    canvas = square(64, "crop", image.shape[1], image.shape[0])
    left, top, right, bottom = canvas.region
    shown = image[top:bottom, left:right].astype(int)
    error = restore(canvas, place(canvas, image, fill=255)) - shown
    inner = error[:, 3:-3] if axis == 1 else error[3:-3]
    assert np.abs(inner).max() <= 1
    assert abs(inner.mean()) <= 0.25


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [0, 3], ids=["grey", "rgb"])
def test_restore_working_size_is_bit_equal(mode, channels):
    image = noise(64, 96) if channels else noise(64, 96)[..., 0]
    canvas = fit_canvas(96, 64, target_height=64, target_width=96, mode=mode)
    placed = place(canvas, image, fill=255)
    np.testing.assert_array_equal(placed, image)
    placed_again = restore(canvas, placed)
    np.testing.assert_array_equal(placed_again, image)
    assert not np.shares_memory(placed_again, placed)


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_restore_unscaled_is_bit_equal(mode):
    image = noise(64, 31) if mode == "pad" else noise(64, 101)
    canvas = square(64, mode, image.shape[1], image.shape[0])
    left, top, right, bottom = canvas.region
    restored = restore(canvas, place(canvas, image, fill=0))
    np.testing.assert_array_equal(restored, image[top:bottom, left:right])


# round trips of any size


@settings(max_examples=80, deadline=None)
@given(sides, sides, targets, targets, modes, st.sampled_from([255, "edge"]), st.integers(0, 255))
def test_round_trip_of_a_constant(width, height, target_width, target_height, mode, fill, level):
    canvas = fit_canvas(width, height, target_height=target_height, target_width=target_width, mode=mode)
    placed = place(canvas, np.full((height, width, 3), level, np.uint8), fill=fill)
    assert placed.shape == (target_height, target_width, 3)
    restored = restore(canvas, placed)
    left, top, right, bottom = canvas.region
    assert restored.shape == (bottom - top, right - left, 3)
    assert (restored == level).all()
    if mode != "crop":
        assert (left, top, right, bottom) == (0, 0, width, height)


@settings(max_examples=80, deadline=None)
@given(st.integers(24, 600), st.integers(24, 600), targets, modes, st.floats(0.3, 0.7), st.floats(0.3, 0.7))
def test_round_trip_keeps_places(width, height, target, mode, x, y):
    canvas = square(target, mode, width, height)
    left, top, right, bottom = canvas.region
    # A dark block a quarter of what is shown, well inside it.
    half_width, half_height = max(1, (right - left) // 8), max(1, (bottom - top) // 8)
    column, row = left + round(x * (right - left)), top + round(y * (bottom - top))
    image = np.full((height, width), 255, np.uint8)
    image[row - half_height : row + half_height, column - half_width : column + half_width] = 0
    restored = restore(canvas, place(canvas, image, fill=255))
    scale = max(width / canvas.resized_width, height / canvas.resized_height, 1)
    shift = np.subtract(centroid(restored), centroid(image[top:bottom, left:right]))
    assert np.abs(shift).max() <= 0.5 * scale


def centroid(grey):
    weights = 255.0 - grey
    rows, columns = np.indices(grey.shape)
    return np.average(rows, weights=weights), np.average(columns, weights=weights)

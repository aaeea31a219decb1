import numpy as np
import pytest

from saishiki.runtime.errors import ImageError
from saishiki.runtime.thin_plate_spline import (
    ControlPoints,
    draw_control_points,
    remap_bicubic,
    sample_map,
    warp_image,
)

POINTS = ControlPoints(0.38, 0.69, 0.24, 0.05)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grid(height, width):
    return np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))


# draw_control_points


def test_draw_control_points_ranges():
    rng = np.random.default_rng(0)
    drawn = np.array([(p.p1, p.p2, p.r1, p.r2) for p in (draw_control_points(rng) for _ in range(2000))])
    np.testing.assert_array_equal(drawn, np.round(drawn, 2))
    np.testing.assert_allclose(drawn.min(axis=0), [0.3, 0.3, -0.25, -0.25], atol=0.011)
    np.testing.assert_allclose(drawn.max(axis=0), [0.7, 0.7, 0.25, 0.25], atol=0.011)


def test_draw_control_points_is_reproducible():
    assert draw_control_points(np.random.default_rng(7)) == draw_control_points(np.random.default_rng(7))
    assert draw_control_points(np.random.default_rng(7)) != draw_control_points(np.random.default_rng(8))


class Drawn:
    """A generator that gives the listed numbers in turn."""

    def __init__(self, *values):
        self.values = list(values)
        self.ranges = []

    def uniform(self, low, high):
        self.ranges.append((low, high))
        return self.values.pop(0)


def test_draw_control_points_order():
    rng = Drawn(0.404, 0.511, 0.1049, -0.2)
    assert draw_control_points(rng) == ControlPoints(p1=0.4, p2=0.51, r1=0.1, r2=-0.2)
    assert rng.ranges == [(0.3, 0.7)] * 2 + [(-0.25, 0.25)] * 2


def test_draw_control_points_draws_again_where_they_coincide():
    # 0.3 + 0.25 and 0.6 - 0.05 differ in floating point, so comparing the sums alone would not do.
    assert 0.3 + 0.25 != 0.6 + -0.05
    rng = Drawn(0.3, 0.6, 0.25, -0.05, 0.3, 0.6, 0.2, 0.1)
    assert draw_control_points(rng) == ControlPoints(0.3, 0.6, 0.2, 0.1)


# sample_map


def at(maps, fraction, height, width):
    """Where the pixel at that fraction of both sides is read, as a fraction of (width, height)."""
    row, column = round(fraction * (height - 1)), round(fraction * (width - 1))
    return maps[0][row, column] / width, maps[1][row, column] / height


@pytest.mark.parametrize("points", [POINTS, ControlPoints(0.5, 0.5, -0.25, 0.25), ControlPoints(0.3, 0.7, 0.25, -0.1)])
def test_sample_map_passes_through_its_points(points):
    height, width = 101, 201
    maps = sample_map(points, height, width)
    for source, moved in ((points.p1, points.r1), (points.p2, points.r2)):
        np.testing.assert_allclose(at(maps, source + moved, height, width), source, atol=1e-4)


def test_sample_map_corners_stay():
    map_x, map_y = sample_map(POINTS, 72, 96)
    np.testing.assert_allclose(map_x[[0, 0, -1, -1], [0, -1, 0, -1]], [0, 96, 0, 96], atol=1e-3)
    np.testing.assert_allclose(map_y[[0, 0, -1, -1], [0, -1, 0, -1]], [0, 0, 72, 72], atol=1e-3)


def test_sample_map_identity_scales_by_the_size():
    map_x, map_y = sample_map(ControlPoints(0.4, 0.6, 0, 0), 16, 24)
    assert map_x.shape == map_y.shape == (16, 24)
    assert map_x.dtype == map_y.dtype == np.float32
    column, row = grid(16, 24)
    np.testing.assert_allclose(map_x, column * 24 / 23, atol=1e-4)
    np.testing.assert_allclose(map_y, row * 16 / 15, atol=1e-4)


def test_sample_map_is_symmetric_about_the_diagonal():
    map_x, map_y = sample_map(POINTS, 40, 40)
    np.testing.assert_allclose(map_x, map_y.T, atol=1e-3)
    assert np.abs(map_x - grid(40, 40)[0]).max() > 4


def test_sample_map_is_the_spline_in_fp64():
    height, width = 20, 30
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    source = np.vstack([corners, [(0.38, 0.38), (0.69, 0.69)]])
    target = np.vstack([corners, [(0.62, 0.62), (0.74, 0.74)]])
    system = np.zeros((9, 9))
    for i, j in np.ndindex(6, 6):
        r = np.hypot(*(target[i] - target[j]))
        system[i, j] = r**2 * np.log(r + 1e-6)
    system[:6, 6:] = np.c_[np.ones(6), target]
    system[6:, :6] = system[:6, 6:].T
    weights = np.linalg.solve(system, np.vstack([source - target, np.zeros((3, 2))]))
    expected = np.zeros((height, width, 2))
    for row, column in np.ndindex(height, width):
        point = np.array([column / (width - 1), row / (height - 1)])
        r = np.hypot(*(target - point).T)
        shift = np.concatenate([r**2 * np.log(r + 1e-6), [1, *point]]) @ weights
        expected[row, column] = (point + shift) * (width, height)
    np.testing.assert_allclose(np.stack(sample_map(POINTS, height, width), -1), expected, atol=1e-3)


def test_sample_map_coinciding_points():
    with pytest.raises(ValueError, match=r"p1 \+ r1 and p2 \+ r2 are both 0\.50: the spline has no solution"):
        sample_map(ControlPoints(0.3, 0.6, 0.2, -0.1), 16, 16)


# remap_bicubic


def test_remap_bicubic_whole_pixels_are_copied():
    image = noise(12, 20)
    map_x, map_y = grid(12, 20)
    np.testing.assert_array_equal(remap_bicubic(image, map_x, map_y), image)
    np.testing.assert_array_equal(remap_bicubic(image, map_x[:, ::-1], map_y), image[:, ::-1])


def test_remap_bicubic_outside_is_black():
    image = np.full((8, 8, 3), 200, np.uint8)
    map_x, map_y = grid(8, 8)
    shifted = remap_bicubic(image, map_x + 3, map_y - 100)
    np.testing.assert_array_equal(shifted, np.zeros((8, 8, 3)))
    shifted = remap_bicubic(image, map_x + 3, map_y)
    np.testing.assert_array_equal(shifted[:, :5], np.full((8, 5, 3), 200))
    np.testing.assert_array_equal(shifted[:, 5:], np.zeros((8, 3, 3)))
    np.testing.assert_array_equal(remap_bicubic(image, map_x * 1e30, map_y)[:, 1:], np.zeros((8, 7, 3)))


def test_remap_bicubic_half_way_weights():
    # Keys' kernel with a = -0.75 at 1.5, 0.5, 0.5, 1.5: -0.09375, 0.59375, 0.59375, -0.09375.
    row = np.array([10, 100, 60, 200], np.uint8)
    image = np.broadcast_to(row[None, :, None], (4, 4, 1)).copy()
    value = remap_bicubic(image, np.full((1, 1), 1.5, np.float32), np.full((1, 1), 2, np.float32))
    assert value.item() == round(-0.09375 * 210 + 0.59375 * 160)


def test_remap_bicubic_border_taps_are_black():
    image = np.full((4, 4, 1), 160, np.uint8)
    value = remap_bicubic(image, np.full((1, 1), 0.5, np.float32), np.full((1, 1), 1, np.float32))
    assert value.item() == round(160 * (0.59375 * 2 - 0.09375))


def test_remap_bicubic_saturates():
    image = np.zeros((8, 8, 1), np.uint8)
    image[:, 4:] = 255
    row = remap_bicubic(image, *(axis[3:4] + offset for axis, offset in zip(grid(8, 8), (0.5, 0), strict=True)))
    assert row[0, :7, 0].tolist() == [0, 0, 0, 128, 255, 255, 255]


def test_remap_bicubic_steps_of_a_32nd():
    image = noise(8, 8)
    map_x, map_y = grid(8, 8)
    np.testing.assert_array_equal(remap_bicubic(image, map_x + 0.015, map_y), image)
    moved = remap_bicubic(image, map_x + 0.25, map_y)
    np.testing.assert_array_equal(remap_bicubic(image, map_x + 0.26, map_y), moved)
    assert (moved != image).any()


def test_remap_bicubic_size_of_the_maps():
    assert remap_bicubic(noise(8, 8), *grid(5, 7)).shape == (5, 7, 3)


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3))], ids=["grey", "float"])
def test_remap_bicubic_other_image(image):
    with pytest.raises(ImageError, match=r"expected uint8 \(H, W, C\), got"):
        remap_bicubic(image, *grid(8, 8))


def test_remap_bicubic_maps():
    map_x, map_y = grid(8, 8)
    with pytest.raises(ValueError, match=r"two finite maps of one shape, got \(8, 8\) and \(7, 8\)"):
        remap_bicubic(noise(8, 8), map_x, map_y[1:])
    with pytest.raises(ValueError, match="two finite maps"):
        remap_bicubic(noise(8, 8), map_x * np.nan, map_y)


# warp_image


def test_warp_image_moves_the_point():
    picture = np.full((101, 151, 3), 255, np.uint8)
    source, moved = 0.4, 0.2
    # The source pixel of a fraction is that fraction of the width, not of width - 1.
    row, column = round(source * 101), round(source * 151)
    picture[row - 2 : row + 3, column - 2 : column + 3] = (200, 0, 0)
    warped = warp_image(picture, ControlPoints(source, 0.7, moved, 0.2))
    assert warped.shape == picture.shape
    assert warped[60, 90].tolist() == [200, 0, 0]
    assert warped[40, 60].tolist() == [255, 255, 255]

import itertools
import math

import numpy as np
import pytest

from saishiki.runtime.errors import ImageError
from saishiki.runtime.xdog import extract_lines


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def reflected(i, length):
    while length > 1 and not 0 <= i < length:
        i = -i if i < 0 else 2 * (length - 1) - i
    return i if length > 1 else 0


def blurred_at(grey, row, column, sigma):
    radius = (round(8 * sigma + 1) | 1) // 2
    steps = range(-radius, radius + 1)
    bell = {step: math.exp(-(step**2) / (2 * sigma**2)) for step in steps}
    height, width = grey.shape
    total = 0.0
    for i, j in itertools.product(steps, steps):
        total += bell[i] * bell[j] * grey[reflected(row + i, height), reflected(column + j, width)]
    return total / sum(bell.values()) ** 2


def response_pixel_by_pixel(rgb, sigma, k=3.5, p=10):
    """What is thresholded, straight from its formula."""
    red, green, blue = rgb.astype(int).transpose(2, 0, 1)
    grey = ((4899 * red + 9617 * green + 1868 * blue + 8192) >> 14) / 255
    response = np.zeros_like(grey)
    for row, column in np.ndindex(grey.shape):
        fine, coarse = (blurred_at(grey, row, column, s) for s in (sigma, k * sigma))
        response[row, column] = grey[row, column] * ((1 + p) * fine - p * coarse)
    return response


@pytest.mark.parametrize("sigma", [0.3, 0.4, 0.5])
@pytest.mark.parametrize("shape", [(12, 17), (3, 9), (9, 2), (1, 5), (1, 1)])
def test_extract_lines_matches_the_formula(shape, sigma):
    rgb = noise(*shape)
    response = response_pixel_by_pixel(rgb, sigma)
    lines = extract_lines(rgb, sigma=sigma)
    assert lines.dtype == np.uint8
    np.testing.assert_array_equal(lines, np.where(response >= 0.01, 255, 0))


def test_extract_lines_other_parameters():
    rgb = noise(10, 11)
    response = response_pixel_by_pixel(rgb, sigma=0.7, k=1.6, p=4)
    lines = extract_lines(rgb, sigma=0.7, k=1.6, p=4, epsilon=0.2)
    np.testing.assert_array_equal(lines, np.where(response >= 0.2, 255, 0))


def test_extract_lines_default_sigma_is_fixed():
    rgb = noise(24, 24)
    np.testing.assert_array_equal(extract_lines(rgb), extract_lines(rgb, sigma=0.4))
    assert (extract_lines(rgb) != extract_lines(rgb, sigma=0.5)).any()


@pytest.mark.parametrize(("level", "drawn"), [(255, 255), (128, 255), (26, 255), (25, 0), (0, 0)])
def test_extract_lines_flat_picture(level, drawn):
    # The response to a flat grey g is g^2: paper from g = 0.1, which is between levels 25 and 26.
    np.testing.assert_array_equal(extract_lines(np.full((20, 20, 3), level, np.uint8)), np.full((20, 20), drawn))


def test_extract_lines_keeps_drawn_lines_in_place():
    page = np.full((32, 32, 3), 255, np.uint8)
    page[16, 4:28] = 0
    assert np.argwhere(extract_lines(page) == 0).tolist() == [[16, column] for column in range(4, 28)]


def test_extract_lines_draws_the_dark_side_of_an_edge():
    picture = np.full((24, 24, 3), 90, np.uint8)
    picture[:, 12:] = 220
    lines = extract_lines(picture)
    assert (lines[:, 11] == 0).all()
    assert (lines[:, 12:] == 255).all()
    assert (lines[:, :6] == 255).all()


@pytest.mark.parametrize("sigma", [0.3, 0.4, 0.5])
def test_extract_lines_soft_threshold_shows_the_response(sigma):
    # So gentle a threshold, so high, that every response is drawn as its own grey.
    rgb = noise(13, 14)
    response = response_pixel_by_pixel(rgb, sigma)
    lines = extract_lines(rgb, sigma=sigma, epsilon=12, phi=0.1)
    np.testing.assert_array_equal(lines, np.rint(255 * (1 + np.tanh(0.1 * (response - 12)))))
    assert len(np.unique(lines)) > 20


@pytest.mark.parametrize("picture", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)])
def test_extract_lines_other_pixels(picture):
    with pytest.raises(ImageError, match=r"expected uint8 \(H, W, 3\), got"):
        extract_lines(picture)


@pytest.mark.parametrize("parameters", [{"sigma": 0}, {"k": -1}, {"sigma": math.nan}])
def test_extract_lines_parameters(parameters):
    with pytest.raises(ValueError, match="sigma and k must be positive"):
        extract_lines(noise(8, 8), **parameters)

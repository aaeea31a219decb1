import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from saishiki.runtime.errors import ImageError
from saishiki.runtime.images import read_image
from saishiki.runtime.pipelines.colorizediffusion.sketch import (
    SKETCH_MODES,
    draw_out_lines,
    empty_sketch,
    prepare_sketch,
)
from tests.pictures import draw_sketch, paint_reference

# How far a truncated level plus a half may lie from the number that was truncated.
TRUNCATED = 0.51


def fitted_by_torch(planes: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(planes, size, mode="bicubic", antialias=True).numpy()


def planes_of(rgb: np.ndarray) -> torch.Tensor:
    return ((torch.from_numpy(rgb).float() / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]


def pencil(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    sketch = draw_sketch(height, width).astype(np.int64) - rng.integers(0, 40, (height, width, 3))
    return np.clip(sketch, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("mode", "sign"), [("invert", -1), ("none", 1)])
def test_prepare_sketch_fits_the_signed_picture(mode: str, sign: int) -> None:
    rgb = paint_reference(161, 100)
    placed = prepare_sketch(rgb, height=128, width=192, mode=mode)
    assert placed.original_shape == (56, 0, 79, 127)
    assert (placed.pixels.shape, placed.pixels.dtype) == ((1, 3, 128, 192), np.float32)
    want = sign * fitted_by_torch(planes_of(rgb), (127, 79))
    np.testing.assert_allclose(placed.pixels[..., :127, 56:135], want, atol=2e-6)
    around = np.ones((128, 192), bool)
    around[:127, 56:135] = False
    assert np.all(placed.pixels[..., around] == -1)


def test_prepare_sketch_makes_black_lines_on_paper_bright_on_dark() -> None:
    placed = prepare_sketch(draw_sketch(64, 64), height=64, width=64)
    assert np.mean(placed.pixels == -1) > 0.8
    assert placed.pixels.max() == 1


def test_prepare_sketch_overshoots_unclamped() -> None:
    assert prepare_sketch(draw_sketch(100, 100), height=64, width=64).pixels.min() < -1.01


def test_prepare_sketch_evens_lines_for_the_web_ui() -> None:
    rgb = pencil(90, 70)
    placed = prepare_sketch(rgb, height=64, width=64, mode="invert-webui")
    lines = torch.from_numpy(draw_out_lines(rgb)).float() / 255 * 2 - 1
    want = fitted_by_torch(lines.expand(1, 3, 90, 70), (64, 49))
    np.testing.assert_allclose(placed.pixels[..., 7:56], want, atol=2e-6)


def lines_by_convolution(rgb: np.ndarray, *, sigma: float = 6.0, border: str = "reflect") -> np.ndarray:
    """The formula again, with torch's convolution and numpy's padding."""
    taps = torch.exp(-(torch.arange(-24, 25).double() ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    padded = np.pad(rgb.astype(np.float64), ((24, 24), (24, 24), (0, 0)), mode=border)
    planes = torch.from_numpy(padded).permute(2, 0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(planes, taps.view(1, 1, 1, 49)), taps.view(1, 1, 49, 1))[:, 0].numpy()
    depth = np.clip((blurred - rgb.transpose(2, 0, 1)).min(axis=0), 0, 255)
    scale = max(16, np.median(depth[depth > 8]))
    return np.clip(depth / scale * 127, 0, 255)


@pytest.mark.parametrize("size", [(90, 70), (200, 161), (12, 300)], ids=str)
def test_draw_out_lines_is_its_formula(size: tuple[int, int]) -> None:
    # Narrower than the kernel's reach, a picture is reflected more than once.
    rgb = pencil(*size)
    want = lines_by_convolution(rgb)
    assert np.abs(draw_out_lines(rgb) + 0.5 - want).max() <= TRUNCATED


@pytest.mark.parametrize("other", [{"sigma": 5.8}, {"border": "edge"}, {"border": "symmetric"}], ids=str)
def test_draw_out_lines_with_another_blur_is_outside_the_tolerance(other: dict) -> None:
    rgb = pencil(90, 70)
    assert np.abs(draw_out_lines(rgb) + 0.5 - lines_by_convolution(rgb, **other)).max() > 1.2 * TRUNCATED


def test_draw_out_lines_of_blank_paper_is_black() -> None:
    assert not draw_out_lines(np.full((64, 50, 3), 255, np.uint8)).any()


def test_draw_out_lines_of_faint_lines_scales_by_16_at_least() -> None:
    # All differences are below 8, so that no median exists.
    rgb = np.full((64, 64, 3), 255, np.uint8)
    rgb[32] = 250
    assert 20 < draw_out_lines(rgb).max() < 5 / 16 * 127


def test_empty_sketch_is_dark_everywhere() -> None:
    empty = empty_sketch(height=64, width=128)
    assert empty.pixels.shape == (1, 3, 64, 128)
    assert np.all(empty.pixels == -1)
    assert empty.original_shape == (0, 0, 128, 64)


def test_prepare_sketch_of_transparent_line_art_keeps_its_lines() -> None:
    ink = np.zeros((64, 64, 4), np.uint8)
    ink[30:34, :, 3] = 255
    placed = prepare_sketch(read_image(Image.fromarray(ink)), height=64, width=64)
    assert np.all(placed.pixels[0, :, 31] == 1)
    assert np.all(placed.pixels[0, :, :30] == -1)


def test_prepare_sketch_refuses_another_mode() -> None:
    with pytest.raises(ValueError, match=f"unknown sketch mode 'extract': use one of {', '.join(SKETCH_MODES)}"):
        prepare_sketch(draw_sketch(64, 64), height=64, width=64, mode="extract")


@pytest.mark.parametrize("pixels", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32)], ids=["2d", "f"])
def test_sketch_refuses_other_pixels(pixels: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected a sketch of uint8 \(H, W, 3\)"):
        prepare_sketch(pixels, height=64, width=64)
    with pytest.raises(ImageError, match=r"expected a sketch of uint8 \(H, W, 3\)"):
        draw_out_lines(pixels)

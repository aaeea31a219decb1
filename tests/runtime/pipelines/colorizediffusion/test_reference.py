import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saishiki.runtime.errors import ImageError
from saishiki.runtime.pipelines.colorizediffusion.reference import (
    clip_pixels,
    keep_background,
    pad_sides,
    vae_pixels,
)

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def planes_of(rgb: np.ndarray) -> torch.Tensor:
    return ((torch.from_numpy(rgb).float() / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]


def clip_by_torch(rgb: np.ndarray, *, align_corners: bool) -> np.ndarray:
    x = F.interpolate(planes_of(rgb), (224, 224), mode="bicubic", antialias=True, align_corners=align_corners)
    return (((x + 1) / 2 - MEAN) / DEVIATION).numpy()


@pytest.mark.parametrize("size", [(300, 220), (97, 121), (224, 224), (8, 900)], ids=str)
def test_clip_pixels_are_corner_aligned(size: tuple[int, int]) -> None:
    got = clip_pixels(picture(*size))
    assert (got.shape, got.dtype) == ((1, 3, 224, 224), np.float32)
    np.testing.assert_allclose(got, clip_by_torch(picture(*size), align_corners=True), atol=1e-5)
    # A sample moves by (n - 1) / 223 instead of n / 224; only equal sizes hardly tell the difference.
    if size != (224, 224):
        assert np.abs(got - clip_by_torch(picture(*size), align_corners=False)).max() > 0.05


def test_vae_pixels_are_plain_bicubic_and_not_clamped() -> None:
    rgb = picture(300, 220)
    got = vae_pixels(rgb, 128, 192)
    want = F.interpolate(planes_of(rgb), (128, 192), mode="bicubic").numpy()
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.abs(got).max() > 1
    antialiased = F.interpolate(planes_of(rgb), (128, 192), mode="bicubic", antialias=True).numpy()
    assert np.abs(got - antialiased).max() > 0.1


def test_pad_sides_centres_the_picture_on_white() -> None:
    rgb = picture(10, 21)
    padded = pad_sides(rgb, 1.5)
    assert padded.shape == (10, 31, 3)
    np.testing.assert_array_equal(padded[:, 5:26], rgb)
    assert np.all(padded[:, :5] == 255)
    assert np.all(padded[:, 26:] == 255)


def test_pad_sides_pads_a_mask_alike() -> None:
    mask = np.ones((10, 21), np.float32)
    padded = pad_sides(mask, 1.5, fill=0)
    assert padded.shape == (10, 31)
    assert padded.sum() == mask.sum() == padded[:, 5:26].sum()


def test_pad_sides_by_1_changes_nothing() -> None:
    np.testing.assert_array_equal(pad_sides(picture(9, 8), 1.0), picture(9, 8))


@pytest.mark.parametrize("scale", [0.99, -2, float("nan"), float("inf")])
def test_pad_sides_refuses_to_shrink(scale: float) -> None:
    with pytest.raises(ValueError, match="padding scale must be at least 1"):
        pad_sides(picture(9, 8), scale)


def test_pad_sides_refuses_a_picture_that_is_too_wide() -> None:
    with pytest.raises(ImageError, match="100 px padded by 90 are 9000 px wide: at most 8192"):
        pad_sides(picture(9, 100), 90)


def test_keep_background_paints_the_foreground_white() -> None:
    rgb = picture(4, 5)
    mask = np.zeros((4, 5), np.float32)
    mask[1], mask[2], mask[3] = 0.2, np.nextafter(np.float32(0.2), np.float32(0)), 1
    kept = keep_background(rgb, mask, 0.2)
    np.testing.assert_array_equal(kept[[0, 2]], rgb[[0, 2]])
    assert np.all(kept[[1, 3]] == 255)


def test_keep_background_agrees_with_masking_the_normalised_picture() -> None:
    rgb, mask = picture(30, 20), np.random.default_rng(1).random((30, 20), dtype=np.float32)
    masked = torch.where(torch.from_numpy(mask) < 0.5, planes_of(rgb), torch.ones(1))
    want = F.interpolate(masked, (64, 64), mode="bicubic").numpy()
    np.testing.assert_allclose(vae_pixels(keep_background(rgb, mask, 0.5), 64, 64), want, atol=2e-6)


def test_keep_background_refuses_a_mask_of_another_size() -> None:
    with pytest.raises(ImageError, match=r"a mask \(5, 4\) does not fit a picture \(4, 5\)"):
        keep_background(picture(4, 5), np.zeros((5, 4), np.float32), 0.5)


def test_reference_refuses_other_pixels() -> None:
    for prepare in (clip_pixels, lambda rgb: vae_pixels(rgb, 64, 64)):
        with pytest.raises(ImageError, match=r"expected a picture of uint8 \(H, W, 3\), got float32"):
            prepare(np.zeros((64, 64, 3), np.float32))

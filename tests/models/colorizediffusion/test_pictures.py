import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saishiki.models.colorizediffusion.pictures import clip_pixels, dilate, keep_background, latent_mask, squash


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def clip_weights(n: int, side: int) -> np.ndarray:
    """(side, n): the published resampling by definition: align-corners scale, half-pixel centres, a = -0.5."""
    scale = (n - 1) / (side - 1)
    weights = np.zeros((side, n))
    for i in range(side):
        centre, support = scale * (i + 0.5), 2 * max(scale, 1)
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), n) - 1
        for j in range(first, last + 1):
            x = abs((j - centre + 0.5) / max(scale, 1))
            inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            weights[i, j] = inner if x < 1 else outer if x < 2 else 0
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(40, 31), (17, 100)], ids=["down", "up-and-down"])
def test_clip_pixels_by_definition(height, width):
    image = random(1, 3, height, width)
    resized = np.einsum("ij,cjk,lk->cil", clip_weights(height, 28), image[0].double().numpy(), clip_weights(width, 28))
    mean = np.array([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = np.array([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    got = clip_pixels(image, 28)
    np.testing.assert_allclose(got[0].numpy(), ((resized + 1) / 2 - mean) / std, atol=2e-5)
    usual = F.interpolate(image, size=(28, 28), mode="bicubic", antialias=True)
    assert np.abs(usual[0].numpy() - resized).max() > 1e-2, "the usual grid must be visibly different"


def test_squash_ignores_the_aspect_and_keeps_overshoot():
    image = torch.where(random(1, 3, 20, 31) > 0, 1.0, -1.0)
    squashed = squash(image, (64, 24))
    assert squashed.shape == (1, 3, 64, 24)
    assert squashed.max() > 1
    torch.testing.assert_close(squash(image, (20, 31)), image)


def test_keep_background_paints_the_foreground_white():
    image, mask = random(1, 3, 2, 2), torch.tensor([[[[0.2, 0.5], [0.8, 0.49]]]])
    kept = keep_background(image, mask, 0.5)
    torch.testing.assert_close(kept[..., 0, 0], image[..., 0, 0])
    torch.testing.assert_close(kept[..., 1, 1], image[..., 1, 1])
    assert (kept[..., 0, 1] == 1).all(), "equality is foreground"
    assert (kept[..., 1, 0] == 1).all()


def test_dilate_grows_by_five_pixels_and_clamps():
    mask = torch.full((1, 1, 20, 24), -0.5)
    mask[..., 10, 12] = 1.5
    grown = dilate(mask)
    assert grown.shape == mask.shape
    assert (grown[..., 5:16, 7:18] == 1).all()
    assert grown.sum() == 11 * 11


def test_latent_mask_is_an_eighth_by_the_factor():
    mask = random(1, 1, 64, 40)
    want = F.interpolate(mask, size=(8, 5), mode="bicubic")
    torch.testing.assert_close(latent_mask(mask), want)
    assert latent_mask(torch.ones(1, 1, 66, 41)).shape == (1, 1, 8, 5)

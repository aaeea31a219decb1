"""Skips warped by the background's features."""

import torch

from saishiki.models.colorizediffusion.warp import WarpModule, select_skip
from tests.models.colorizediffusion.small_networks import randomized


def test_warping_does_not_depend_on_the_order_of_the_background() -> None:
    torch.manual_seed(0)
    module = randomized(WarpModule(32, 64))
    skip, background = torch.randn(2, 32, 2, 4), torch.randn(2, 8, 32)
    warped = module(skip, background)
    torch.testing.assert_close(module(skip, background.flip(1)), warped, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(module(skip, background * 2), warped, atol=1e-2)


def test_heads_are_64_wide_whatever_the_skip() -> None:
    assert WarpModule(32, 128).attn.heads == 2
    assert WarpModule(32, 64).attn.heads == 1


def test_copies_are_warped_by_the_same_map() -> None:
    torch.manual_seed(0)
    module = randomized(WarpModule(32, 64))
    skips, background = torch.randn(3, 2, 32, 2, 4), torch.randn(2, 8, 32)
    together = module.warp(skips.flatten(0, 1), *module.project(background), copies=3)
    apart = torch.cat([module(skip, background) for skip in skips])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_a_mask_at_the_threshold_takes_the_warped_skip() -> None:
    skip, warped = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    mask = torch.tensor([[0.5, 0.6], [0.4, 0.5]])[None, None]
    assert select_skip(skip, warped, mask, 0.5)[0, 0].tolist() == [[1, 0], [1, 1]]


def test_the_mask_is_resized_to_the_skip() -> None:
    skip, warped = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :4] = 1.0
    assert select_skip(skip, warped, mask, 0.5)[0, 0].tolist() == [[0, 1], [1, 1]]

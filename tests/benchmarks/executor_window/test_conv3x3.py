from dataclasses import replace

import pytest
import torch
from executor_window.conv3x3 import Tile, conv3x3, conv3x3_reference
from torch import Tensor

TILE = Tile(32, 16, 16, 1, 1)


def _draw(height: int, width: int, channels: int, outputs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(height, width, channels).half()
    w = (torch.randn(outputs, 3, 3, channels) / (3 * channels**0.5)).half()
    return x, w, torch.randn(outputs).half(), torch.full((height, width, outputs), float("nan")).half()


def _check(y: Tensor, truth: Tensor, plain: Tensor) -> None:
    error, own = ((each.double() - truth).abs().max().item() for each in (y, plain))
    assert error <= 2 * own + 1e-6


@pytest.mark.parametrize(("height", "width", "outputs"), [(4, 8, 16), (5, 3, 16), (3, 7, 21), (1, 1, 5)])
def test_conv3x3_with_sizes_that_fit_no_tile(height: int, width: int, outputs: int) -> None:
    x, w, bias, y = _draw(height, width, 32, outputs)
    conv3x3(x, w, bias, y, tile=TILE)
    _check(y, conv3x3_reference(x.double(), w.double(), bias.double()), conv3x3_reference(x, w, bias))


def test_conv3x3_with_residual_and_sums() -> None:
    x, w, bias, y = _draw(5, 7, 16, 24)
    residual, sums = torch.randn(5, 7, 24).half(), torch.zeros(2, 24)
    conv3x3(x, w, bias, y, tile=TILE, residual=residual, sums=sums)
    truth = conv3x3_reference(x.double(), w.double(), bias.double(), residual=residual.double())
    _check(y, truth, conv3x3_reference(x, w, bias, residual=residual))
    expected = torch.stack((truth.sum((0, 1)), truth.square().sum((0, 1))))
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-4)


def test_conv3x3_with_the_norm_in_front_pads_behind_it() -> None:
    x, w, bias, y = _draw(4, 5, 16, 16)
    # SiLU of the shift is far from 0, so that padding with f(0) would show.
    scale, shift = torch.rand(16) + 0.5, torch.full((16,), 3.0)
    conv3x3(x, w, bias, y, tile=TILE, scale=scale, shift=shift)
    doubled = conv3x3_reference(x.double(), w.double(), bias.double(), scale=scale.double(), shift=shift.double())
    _check(y, doubled, conv3x3_reference(x, w, bias, scale=scale.half(), shift=shift.half()))


def test_conv3x3_of_two_tap_chunks_and_many_tiles() -> None:
    x, w, bias, y = _draw(9, 9, 48, 40)
    conv3x3(x, w, bias, y, tile=replace(TILE, block_m=16))
    _check(y, conv3x3_reference(x.double(), w.double(), bias.double()), conv3x3_reference(x, w, bias))


def test_conv3x3_refuses_channels_that_are_no_multiple() -> None:
    x, w, bias, y = _draw(2, 2, 24, 16)
    with pytest.raises(ValueError, match="multiples of 16, got 24"):
        conv3x3(x, w, bias, y, tile=TILE)


def test_conv3x3_refuses_shapes_that_do_not_fit() -> None:
    x, w, bias, y = _draw(2, 2, 16, 16)
    with pytest.raises(ValueError, match=r"expected w \(N, 3, 3, 16\)"):
        conv3x3(x, w[:, :, :1], bias, y, tile=TILE)
    with pytest.raises(ValueError, match="scale and shift together"):
        conv3x3(x, w, bias, y, tile=TILE, scale=torch.ones(16))

"""What a convolution is given, in NHWC and fp16: random numbers, several sets of them, and the result in fp64.

Sets are taken in turns. Weights come anew from device memory in every launch of a network, so there are as many sets of
them as launches are timed together; of activations there are two, as a layer finds its input in the cache where the
layer before it left it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from executor_window.layers import Conv

SETS = 10
ACTIVATIONS = 2
FLOOR = 1e-4


@dataclass(frozen=True)
class Variant:
    """What a convolution does besides.

    Args:
        bias: adds a half per channel: the bias, and with it this step's time projection.
        residual: adds an image, before the bias.
        prologue: ``silu(scale x + shift)`` per channel of the input, which is a GroupNorm whose statistics are known.
        sums: also gives the sum and the sum of squares of each channel of the result, for the norm behind it.
    """

    name: str
    bias: bool = True
    residual: bool = False
    prologue: bool = False
    sums: bool = False


PLAIN = Variant("plain", bias=False)
BIAS = Variant("bias")
RESIDUAL_BIAS = Variant("residual + bias", residual=True)
SUMS = Variant("residual + bias + sums", residual=True, sums=True)
PROLOGUE = Variant("norm and SiLU before, residual + bias", residual=True, prologue=True)


@dataclass(frozen=True)
class Operands:
    """One set. x: (H, W, C), residual and y: (H, W, K), w: (K, R, S, C), bias: (K,), all fp16.

    scale and shift: (C,), sums: (2, K), fp32.
    """

    x: Tensor
    w: Tensor
    bias: Tensor
    residual: Tensor
    scale: Tensor
    shift: Tensor
    y: Tensor
    sums: Tensor


def draw_operands(conv: Conv, device: str, sets: int = SETS) -> list[Operands]:
    """Sets of seed 0. The result is full of NaN, so that what is not written shows."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    h, w, c, k, r = conv.height, conv.width, conv.channels_in, conv.channels_out, conv.kernel
    images = [(draw(h, w, c).half(), draw(h, w, k).half(), _nan(h, w, k, device)) for _ in range(ACTIVATIONS)]
    shared = (1 + 0.1 * draw(c), 0.1 * draw(c))
    return [
        Operands(
            x=images[i % ACTIVATIONS][0],
            w=(draw(k, r, r, c) / (r * c**0.5)).half(),
            bias=draw(k).half(),
            residual=images[i % ACTIVATIONS][1],
            scale=shared[0],
            shift=shared[1],
            y=images[i % ACTIVATIONS][2],
            sums=torch.zeros(2, k, device=device),
        )
        for i in range(sets)
    ]


def _nan(h: int, w: int, k: int, device: str) -> Tensor:
    return torch.full((h, w, k), float("nan"), device=device, dtype=torch.float16)


def conv_reference(operands: Operands, variant: Variant, dtype: torch.dtype = torch.float64) -> Tensor:
    """(H, W, K) in plain torch: in fp64 the truth, in fp16 the error budget."""
    x = operands.x.to(dtype)
    if variant.prologue:
        x = F.silu(x * operands.scale.to(dtype) + operands.shift.to(dtype))
    weight = operands.w.to(dtype).permute(0, 3, 1, 2)
    padding = operands.w.shape[1] // 2
    # A search among algorithms pays where it is timed, and takes seconds in fp64.
    with _cudnn_search(dtype == torch.float16):
        y = F.conv2d(x.permute(2, 0, 1)[None], weight, padding=padding)[0].permute(1, 2, 0)
    y = y + operands.residual.to(dtype) if variant.residual else y
    return y + operands.bias.to(dtype) if variant.bias else y


@contextlib.contextmanager
def _cudnn_search(on: bool) -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def sums_reference(y: Tensor) -> Tensor:
    """(2, K) fp64: sum and sum of squares of each channel of an (H, W, K) image."""
    y = y.double()
    return torch.stack((y.sum((0, 1)), y.square().sum((0, 1))))


def budget_of(operands: Operands, variant: Variant, truth: Tensor) -> float:
    """Twice the relative error of plain torch in fp16, and a floor."""
    plain = conv_reference(operands, variant, torch.float16).double()
    return 2 * float((plain - truth).norm() / truth.norm()) + FLOOR

"""The mean of all pixels of an image: ``y[c] = sum_p x[p, c] / P``.

Layout: x (B, P, C) with C innermost, y (B, C'), the first C' <= C of its channels; fp16, bf16 or fp32, summed in fp32.
A program takes BLOCK_C channels of one image and walks over its pixels, BLOCK_P sums of every channel at a time. A
launch without torch: :func:`saishiki.runtime.backends.launches.pool.mean_launches`.
"""

# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

from saishiki.kernels.checks import FLOATS, INTERPRETED, check_runs_here, check_tensor
from saishiki.kernels.rounding import rounded
from saishiki.kernels.variant import Variant
from saishiki.runtime.backends.launches.pool import UNIT

BLOCKS = {"BLOCK_P": 64, "BLOCK_C": 32}


def mean_reference(x: Tensor) -> Tensor:
    """Of :func:`mean`, the same argument and result, in any dtype."""
    return x.mean(dim=1)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["batch", "pixels", "channel_units", "out_channels"]
)
def _mean_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    out_ptr,
    batch,
    pixels,
    channel_units,
    out_channels,
    UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    channels = channel_units.to(tl.int64) * UNIT
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    b = tl.program_id(1).to(tl.int64)
    x_ptr += b * pixels * channels
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, pixels, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)  # [BLOCK_P]
        inside = (p < pixels)[:, None] & (c < channels)[None, :]
        total += tl.load(x_ptr + (p.to(tl.int64)[:, None] * channels + c[None, :]), mask=inside, other=0.0).to(
            tl.float32
        )
    y = rounded(tl.sum(total, 0) / pixels, out_ptr.dtype.element_ty, IN_FP32)
    tl.store(out_ptr + b * out_channels + c, y, mask=c < out_channels)


def mean(x: Tensor) -> Tensor:
    """(B, C) in x's dtype.

    Args:
        x: (B, P, C) fp16, bf16 or fp32, contiguous; P from 1, C a multiple of 8.

    Raises ``TypeError`` for other dtypes, ``ValueError`` for shapes and strides that do not fit.
    """
    if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] % UNIT:
        raise ValueError(f"expected x (B, P, C) with P from 1 and C a multiple of {UNIT}, got {tuple(x.shape)}")
    check_tensor("x", x, x.shape, FLOATS, x.device)
    check_runs_here("mean", x)
    batch, pixels, channels = x.shape
    out = torch.empty((batch, channels), dtype=x.dtype, device=x.device)
    if out.numel():
        _mean_kernel[triton.cdiv(channels, BLOCKS["BLOCK_C"]), batch](
            x,
            out,
            batch,
            pixels,
            channels // UNIT,
            channels,
            UNIT=UNIT,
            IN_FP32=INTERPRETED and x.dtype == torch.bfloat16,
            **BLOCKS,
        )
    return out


VARIANTS: tuple[Variant, ...] = (
    Variant(
        name="mean_fp16",
        kernel=_mean_kernel,
        signature={
            **dict.fromkeys(("x_ptr", "out_ptr"), "*fp16"),
            **dict.fromkeys(("batch", "pixels", "channel_units", "out_channels"), "i32"),
        },
        constexprs={"UNIT": UNIT, **BLOCKS, "IN_FP32": False},
        aligned=("x_ptr", "out_ptr"),
        grid=((("out_channels",), BLOCKS["BLOCK_C"]), (("batch",), 1)),
        max_registers=64,
    ),
)

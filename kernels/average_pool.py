"""The mean of each 2x2 pixels: ``y[p, q] = (x[2p, 2q] + x[2p, 2q+1] + x[2p+1, 2q] + x[2p+1, 2q+1]) / 4``.

Layout: x (B, H, W, C) and y (B, H/2, W/2, C) in memory, channels innermost; fp16, bf16 or fp32, summed in fp32. A
program takes BLOCK units of UNIT channels of one image. A launch without torch:
:func:`saishiki.runtime.backends.launches.pool.pool_launches`.
"""

# ruff: noqa: N803

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from saishiki.kernels.checks import FLOATS, INTERPRETED, check_runs_here
from saishiki.kernels.rounding import rounded
from saishiki.kernels.variant import Variant
from saishiki.runtime.backends.launches.pool import UNIT

BLOCK = 128


def average_pool_reference(x: Tensor) -> Tensor:
    """Of :func:`average_pool`, the same argument and result, in any dtype."""
    return F.avg_pool2d(x, 2)


@triton.jit(do_not_specialize=["batch", "out_height", "out_width", "channel_units"])  # type: ignore[untyped-decorator]
def _average_pool_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    out_ptr,
    batch,
    out_height,
    out_width,
    channel_units,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    b = tl.program_id(1).to(tl.int64)
    units = out_height * out_width * channel_units
    inside = (unit < units)[:, None]
    pixel = unit // channel_units
    row = pixel // out_width
    lane = tl.arange(0, UNIT)[None, :]
    # Units of x before the one above on the left: two rows of twice the width for each row of y, two for each pixel.
    first = row.to(tl.int64) * 4 * out_width + pixel % out_width * 2
    first = (first * channel_units + unit % channel_units)[:, None] * UNIT + lane  # [BLOCK, UNIT]
    x_ptr += b * units * 4 * UNIT
    right = channel_units * UNIT
    below = 2 * out_width.to(tl.int64) * right
    above = tl.load(x_ptr + first, mask=inside, other=0.0).to(tl.float32)
    above += tl.load(x_ptr + first + right, mask=inside, other=0.0).to(tl.float32)
    under = tl.load(x_ptr + first + below, mask=inside, other=0.0).to(tl.float32)
    under += tl.load(x_ptr + first + (below + right), mask=inside, other=0.0).to(tl.float32)
    out_ptr += b * units * UNIT
    y = rounded((above + under) * 0.25, out_ptr.dtype.element_ty, IN_FP32)
    tl.store(out_ptr + (unit.to(tl.int64)[:, None] * UNIT + lane), y, mask=inside)


def average_pool(x: Tensor) -> Tensor:
    """(B, C, H/2, W/2) in channels_last and x's dtype.

    Args:
        x: (B, C, H, W) fp16, bf16 or fp32, channels_last; H and W even.

    Raises ``TypeError`` for other dtypes, ``ValueError`` for shapes and layouts that do not fit.
    """
    if x.dtype not in FLOATS:
        raise TypeError(f"expected x in {' or '.join(map(str, FLOATS))}, got {x.dtype}")
    if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"expected x (B, C, H, W) with H and W even, got {tuple(x.shape)}")
    if not x.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("x is not channels_last; call .contiguous(memory_format=torch.channels_last)")
    check_runs_here("average_pool", x)
    batch, channels, height, width = x.shape
    shape = (batch, channels, height // 2, width // 2)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel():
        unit = math.gcd(channels, UNIT)
        _average_pool_kernel[triton.cdiv(out.numel() // batch // unit, BLOCK), batch](
            x,
            out,
            batch,
            shape[2],
            shape[3],
            channels // unit,
            UNIT=unit,
            BLOCK=BLOCK,
            IN_FP32=INTERPRETED and x.dtype == torch.bfloat16,
        )
    return out


VARIANTS: tuple[Variant, ...] = (
    Variant(
        name="average_pool_fp16",
        kernel=_average_pool_kernel,
        signature={
            **dict.fromkeys(("x_ptr", "out_ptr"), "*fp16"),
            **dict.fromkeys(("batch", "out_height", "out_width", "channel_units"), "i32"),
        },
        constexprs={"UNIT": UNIT, "BLOCK": BLOCK, "IN_FP32": False},
        aligned=("x_ptr", "out_ptr"),
        grid=((("out_height", "out_width", "channel_units"), BLOCK), (("batch",), 1)),
        max_registers=64,
    ),
)

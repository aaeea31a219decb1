"""``conv3x3`` in Triton: 3x3 convolution with padding 1, NHWC, batch 1, as a matrix product over the nine taps.

y[m, n] = sum over taps (r, s) and channels c of f(x)[m + (r - 1, s - 1), c] * w[n, r, s, c] + residual[m, n] + bias[n]

with f(x) = silu(scale x + shift) where a norm is folded in, else x; outside the image f is 0. fp16 in and out, fp32
sums. ``sums`` also takes each channel's sum and sum of squares of y as it is in fp32, by atomic additions. What would
serve an executor without cuDNN; it reads each input nine times from L2.

x: (H, W, C), w: (N, 3, 3, C), residual and y: (H, W, N) fp16; bias: (N,) fp16; scale, shift: (C,), sums: (2, N) fp32.
Any H, W and N; C a multiple of BLOCK_K.
"""

from dataclasses import dataclass

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from saishiki.kernels.dot import dot


@dataclass(frozen=True)
class Tile:
    """Pixels, output channels and input channels of a step, and how a block works on it."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


TILES = (Tile(128, 64, 64, 4, 4), Tile(128, 128, 64, 8, 4), Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 4, 4))
"""All compile to HGMMA for sm_90; none spills, but the first with a norm in front 8 bytes (Triton 3.9)."""
TINY_TILE = Tile(256, 64, 32, 4, 1)


@triton.jit  # type: ignore[untyped-decorator]
def _conv3x3_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    w_ptr,
    y_ptr,
    bias_ptr,
    residual_ptr,
    scale_ptr,
    shift_ptr,
    sums_ptr,
    height,
    width,
    channels_in,
    channels_out,
    PROLOGUE: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    SUMS: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
    BLOCK_K: tl.constexpr,  # noqa: N803
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    row = m // width
    column = m % width
    inside = m < height * width
    chunks = channels_in // BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(0, 9 * chunks):
        tap = i // chunks
        c = (i % chunks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        h = row + tap // 3 - 1
        w = column + tap % 3 - 1
        there = inside & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        at = (h.to(tl.int64) * width + w) * channels_in
        a = tl.load(x_ptr + at[:, None] + c[None, :], mask=there[:, None], other=0.0)  # [BLOCK_M, BLOCK_K]
        b_at = n.to(tl.int64)[None, :] * (9 * channels_in) + (tap * channels_in + c)[:, None]
        b = tl.load(w_ptr + b_at, mask=(n < channels_out)[None, :], other=0.0)  # [BLOCK_K, BLOCK_N]
        if PROLOGUE:
            f = a.to(tl.float32) * tl.load(scale_ptr + c)[None, :] + tl.load(shift_ptr + c)[None, :]
            # The padding is that of f(x), not of x.
            a = tl.where(there[:, None], f / (1.0 + tl.exp(-f)), 0.0).to(a.dtype)
        acc = dot(a, b, acc, False)
    known = inside[:, None] & (n < channels_out)[None, :]
    out = m.to(tl.int64)[:, None] * channels_out + n[None, :]
    if RESIDUAL:
        acc += tl.load(residual_ptr + out, mask=known, other=0.0).to(tl.float32)
    acc += tl.load(bias_ptr + n, mask=n < channels_out, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + out, acc.to(y_ptr.dtype.element_ty), mask=known)
    if SUMS:
        counted = tl.where(known, acc, 0.0)
        tl.atomic_add(sums_ptr + n, tl.sum(counted, 0), mask=n < channels_out, sem="relaxed")
        squares = sums_ptr + channels_out + n
        tl.atomic_add(squares, tl.sum(counted * counted, 0), mask=n < channels_out, sem="relaxed")


def conv3x3_reference(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """(H, W, N) in plain torch, at the dtype of x."""
    if scale is not None and shift is not None:
        x = F.silu(x * scale + shift)
    y = F.conv2d(x.permute(2, 0, 1)[None], w.permute(0, 3, 1, 2), padding=1)[0].permute(1, 2, 0)
    return y + bias if residual is None else y + residual + bias


def conv3x3(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    y: Tensor,
    *,
    tile: Tile,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """Writes y, and adds to ``sums`` where they are given.

    Raises ``ValueError`` for shapes that do not fit one another or the tile, or a scale without a shift.
    """
    height, width, channels = x.shape
    outputs = w.shape[0]
    if tuple(w.shape) != (outputs, 3, 3, channels) or tuple(y.shape) != (height, width, outputs):
        raise ValueError(f"expected w (N, 3, 3, {channels}) and y ({height}, {width}, N), got {w.shape} and {y.shape}")
    if channels % tile.block_k:
        raise ValueError(f"expected channels in multiples of {tile.block_k}, got {channels}")
    if (scale is None) != (shift is None):
        raise ValueError("expected scale and shift together, got one of them")
    grid = (triton.cdiv(height * width, tile.block_m), triton.cdiv(outputs, tile.block_n))
    _conv3x3_kernel[grid](
        x,
        w,
        y,
        bias,
        x if residual is None else residual,
        bias if scale is None else scale,
        bias if shift is None else shift,
        bias if sums is None else sums,
        height,
        width,
        channels,
        outputs,
        PROLOGUE=scale is not None,
        RESIDUAL=residual is not None,
        SUMS=sums is not None,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )

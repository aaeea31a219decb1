"""Normalises, scales, shifts, applies SiLU and rounds, in one launch that reads u once.

A launch without torch: the grid is ``channel_blocks * pixel_blocks * batch``, where ``channel_blocks`` is C / BLOCK_C
rounded up, and ``pixel_blocks`` is at least H' W' / BLOCK_P, with the variant's constants; ``count_pixel_blocks`` in
``runtime/backends/group_norm_tiles.py`` gives one that fills the GPU.

- u: ``channels`` is C, ``channels_x`` the number of x's own, ``pixels`` H W and ``width`` W of x, also where UPSAMPLE
  is on; concat and residual are of the output's size. Pointers that a variant does not use may be null.
- ``statistics_ptr``: what the statistics kernel wrote; with FROM_SUMS instead the (B, C, 2) fp32 sums.
- ``out_ptr``: (B, C, H', W') in the layout of u; with RETURN_INPUT, u itself goes to ``input_ptr``, alike.
"""

# ruff: noqa: N803

import triton
import triton.language as tl

from saishiki.kernels.group_norm_silu.input_tile import image_offsets, load_embedding, load_input
from saishiki.kernels.rounding import rounded


@triton.jit  # type: ignore[untyped-decorator]
def _moments_from_sums(sums_ptr, b, g, inside, group_width, channels, out_pixels, BLOCK_I: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BLOCK_C] mean and variance of groups g, from the sums of their channels; rounding makes no variance negative."""
    total = tl.zeros_like(g).to(tl.float32)
    square = tl.zeros_like(g).to(tl.float32)
    for start in tl.range(0, group_width, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)  # [BLOCK_I]
        channel = (g * group_width)[None, :] + i[:, None]
        summed = (i < group_width)[:, None] & inside[None, :]
        offsets = (b.to(tl.int64) * channels + channel) * 2
        total += tl.sum(tl.load(sums_ptr + offsets, mask=summed, other=0.0), 0)
        square += tl.sum(tl.load(sums_ptr + offsets + 1, mask=summed, other=0.0), 0)
    count = group_width.to(tl.float32) * out_pixels
    mean = total / count
    variance = square / count - mean * mean
    return mean, tl.where(variance < 0.0, 0.0, variance)


@triton.jit(do_not_specialize=["batch", "width", "groups", "channel_blocks", "pixel_blocks"])  # type: ignore[untyped-decorator]
def _apply_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    concat_ptr,
    residual_ptr,
    embedding_ptr,
    statistics_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    input_ptr,
    batch,
    pixels,
    channels,
    channels_x,
    width,
    groups,
    channel_blocks,
    pixel_blocks,
    eps,
    HAS_CONCAT: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_EMBEDDING: tl.constexpr,
    FROM_SUMS: tl.constexpr,
    RETURN_INPUT: tl.constexpr,
    SILU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    IN_FP32: tl.constexpr,
    PIXEL_UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    block = tl.program_id(0) % channel_blocks
    pixel_block = tl.program_id(0) // channel_blocks % pixel_blocks
    b = tl.program_id(0) // channel_blocks // pixel_blocks
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    out_pixels = pixels
    if UPSAMPLE:
        out_pixels = pixels * 4
    pixels_per_block = tl.cdiv(out_pixels, pixel_blocks * PIXEL_UNIT) * PIXEL_UNIT
    p = pixel_block * pixels_per_block + tl.arange(0, BLOCK_P)  # [BLOCK_P]
    p_end = tl.minimum((pixel_block + 1) * pixels_per_block, out_pixels)
    real = c < channels
    inside = (p < p_end)[:, None] & real[None, :]
    u = load_input(
        x_ptr,
        concat_ptr,
        residual_ptr,
        load_embedding(embedding_ptr, b, c, channels, HAS_EMBEDDING),
        b,
        p,
        c,
        inside,
        pixels,
        channels,
        channels_x,
        width,
        HAS_CONCAT,
        UPSAMPLE,
        HAS_RESIDUAL,
        CHANNELS_LAST,
    )
    group_width = channels // groups
    g = c // group_width
    if FROM_SUMS:
        mean, variance = _moments_from_sums(statistics_ptr, b, g, real, group_width, channels, out_pixels, 16)
        rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    else:
        statistics = statistics_ptr + (b.to(tl.int64) * groups + g) * 2
        mean = tl.load(statistics, mask=real, other=0.0)
        rstd = tl.load(statistics + 1, mask=real, other=0.0)
    scale = rstd * tl.load(weight_ptr + c, mask=real, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=real, other=0.0).to(tl.float32)
    y = (u - mean[None, :]) * scale[None, :] + bias[None, :]
    if SILU:
        y *= tl.sigmoid(y)
    offsets = image_offsets(b, p, c, out_pixels, channels, CHANNELS_LAST)
    tl.store(out_ptr + offsets, rounded(y, out_ptr.dtype.element_ty, IN_FP32), mask=inside)
    if RETURN_INPUT:
        tl.store(input_ptr + offsets, rounded(u, input_ptr.dtype.element_ty, IN_FP32), mask=inside)

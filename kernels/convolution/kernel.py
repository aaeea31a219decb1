"""Convolution as a matrix product over the taps (implicit GEMM), NHWC, with what lies around it in the same launch.

One program computes BLOCK_M pixels of one image by BLOCK_N filters. It walks over the taps and, within a tap, over the
input channels in steps of BLOCK_K: each step reads the pixels that its own see through that tap, and multiplies. Taps,
stride and padding are numbers of the launch, so one cubin serves 1x1 and 3x3, down and up. Sums are fp32; residual and
bias join them there, and there is one rounding.

With NORM the input is normalised on its way in: (x - mean) * (rstd * weight) + bias, SiLU where ``silu`` is not 0, then
rounded, then 0 in the padding. That is what ``group_norm_silu``'s apply kernel would have stored, without the launch,
the write and the read; but every tap and every tile of filters normalises again.

A launch without torch: :func:`saishiki.runtime.backends.convolution_kernel.convolution_launch` gives the arguments.

- x: (B, ``height``, ``width``, C), w: (K, ``taps_r``, ``taps_s``, C), residual and out: (B, ``out_height``,
  ``out_width``, K); C is ``channel_units * CHANNEL_UNIT``, K ``filter_units * FILTER_UNIT``. w is dense; the images'
  pixels may be parts of longer ones, ``x_units * CHANNEL_UNIT`` numbers apart, ``residual_units * FILTER_UNIT`` and
  ``out_units * FILTER_UNIT``. One image has less than 2**31 numbers, as has w.
- ``bias_ptr``: ``bias_rows`` vectors (K,), ``bias_stride`` numbers apart; image b takes that of b modulo ``bias_rows``.
  It may be null where there are none.
- ``residual_ptr`` may be null where ``has_residual`` is 0. Where out is fp32, nothing is rounded.
- ``statistics_ptr``: (B, ``groups``, 2) fp32 mean and rstd; ``norm_weight_ptr``, ``norm_bias_ptr``: (C,) fp32; null
  without NORM.
- TO_IMAGE: out is (B, K, ``out_height``, ``out_width``) fp32, dense, rounded to x's dtype all the same; the residual is
  not read.
"""

# ruff: noqa: N803

import triton
import triton.language as tl

from saishiki.kernels.convolution.epilogue import store_nchw, store_nhwc
from saishiki.kernels.convolution.taps import first_tap, load_weight, next_step
from saishiki.kernels.dot import dot
from saishiki.kernels.rounding import rounded


@triton.jit  # type: ignore[untyped-decorator]
def _normalised(  # type: ignore[no-untyped-def]
    x,  # [BLOCK_M, BLOCK_K]
    there,  # [BLOCK_M]
    c,  # [BLOCK_K]
    channels,
    statistics_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    group_width,
    silu,
    IN_FP32: tl.constexpr,
):
    """x as the apply kernel would have rounded it; 0 in the padding."""
    known = c < channels
    statistics = statistics_ptr + c // group_width * 2
    mean = tl.load(statistics, mask=known, other=0.0)  # [BLOCK_K]
    rstd = tl.load(statistics + 1, mask=known, other=0.0)
    scale = rstd * tl.load(norm_weight_ptr + c, mask=known, other=0.0)
    bias = tl.load(norm_bias_ptr + c, mask=known, other=0.0)
    y = (x.to(tl.float32) - mean[None, :]) * scale[None, :] + bias[None, :]
    y *= tl.where(silu != 0, tl.sigmoid(y), 1.0)
    return rounded(tl.where(there[:, None], y, 0.0), x.dtype, IN_FP32)


# No int makes kernels of its own by being 1 or a multiple of 16.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        *("batch", "height", "width", "channel_units", "out_height", "out_width", "filter_units", "taps_r", "taps_s"),
        *("stride", "pad_top", "pad_left", "x_units", "out_units", "residual_units", "bias_rows", "bias_stride"),
        *("has_residual", "groups", "silu"),
    ]
)
def _convolution_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    statistics_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    out_ptr,
    batch,
    height,
    width,
    channel_units,
    out_height,
    out_width,
    filter_units,
    taps_r,
    taps_s,
    stride,
    pad_top,
    pad_left,
    x_units,
    out_units,
    residual_units,
    bias_rows,
    bias_stride,
    has_residual,
    groups,
    silu,
    NORM: tl.constexpr,
    TO_IMAGE: tl.constexpr,
    CHANNEL_UNIT: tl.constexpr,
    FILTER_UNIT: tl.constexpr,
    IN_FP32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Blocks of the same pixels run together: they share what they read of x.
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    p = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    b = tl.program_id(2)
    channels = channel_units * CHANNEL_UNIT
    filters = filter_units * FILTER_UNIT
    taps = taps_r * taps_s
    inside = p < out_height * out_width
    row, column = first_tap(p, out_width, stride, pad_top, pad_left)
    x_stride = x_units * CHANNEL_UNIT
    x_ptr += b.to(tl.int64) * height * width * x_stride
    if NORM:
        statistics_ptr += b.to(tl.int64) * groups * 2

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    r, s, start = 0, 0, 0
    for _ in tl.range(0, taps * tl.cdiv(channels, BLOCK_K)):
        c = start + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        h = row + r
        w = column + s
        there = inside & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        x_offsets = ((h * width + w) * x_stride)[:, None] + c[None, :]
        x = tl.load(x_ptr + x_offsets, mask=there[:, None] & (c < channels)[None, :], other=0.0)
        weight = load_weight(w_ptr, n, r * taps_s + s, c, taps, channels, filters)
        if NORM:
            x = _normalised(
                x,
                there,
                c,
                channels,
                statistics_ptr,
                norm_weight_ptr,
                norm_bias_ptr,
                channels // groups,
                silu,
                IN_FP32,
            )
        acc = dot(x, weight, acc, IN_FP32)
        r, s, start = next_step(r, s, start, channels, taps_s, BLOCK_K)

    out_pixels = out_height * out_width
    if TO_IMAGE:
        dtype: tl.constexpr = x_ptr.dtype.element_ty
        store_nchw(acc, bias_ptr, out_ptr, b, p, n, out_pixels, filters, bias_rows, bias_stride, dtype, IN_FP32)
    else:
        store_nhwc(
            acc,
            bias_ptr,
            residual_ptr,
            out_ptr,
            b,
            p,
            n,
            out_pixels,
            filters,
            out_units * FILTER_UNIT,
            residual_units * FILTER_UNIT,
            bias_rows,
            bias_stride,
            has_residual,
            IN_FP32,
        )

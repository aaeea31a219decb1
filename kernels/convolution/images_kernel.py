"""A network's first convolution, straight from its fp32 NCHW inputs: no launch to round, pad and turn them before.

As :mod:`~saishiki.kernels.convolution.kernel`, but a step is a tap with all its channels, of one or two images; tiles
of them are read channel by channel, since pixels lie together.

A launch without torch: :func:`saishiki.runtime.backends.convolution_kernel.from_images_launch` gives the arguments.

- x: (B, ``channels_x``, ``height``, ``width``) fp32, x2 alike with ``channels_x2``, behind x's; null where it has none.
- w: (K, ``taps_r``, ``taps_s``, C) with C, ``channel_units * CHANNEL_UNIT``, at most BLOCK_K; what lies behind the
  images' own channels is read and must be finite.
- residual (null where ``has_residual`` is 0) and out: (B, ``out_height``, ``out_width``, K), bias: (K,), in w's dtype,
  which x is rounded to.
"""

# ruff: noqa: N803

import triton
import triton.language as tl

from saishiki.kernels.convolution.epilogue import store_nhwc
from saishiki.kernels.convolution.taps import first_tap, load_weight, next_step
from saishiki.kernels.dot import dot
from saishiki.kernels.rounding import rounded


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        *("channels_x", "channels_x2", "batch", "height", "width", "channel_units", "out_height", "out_width"),
        *("filter_units", "taps_r", "taps_s", "stride", "pad_top", "pad_left", "has_residual"),
    ]
)
def _from_images_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    x2_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    channels_x,
    channels_x2,
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
    has_residual,
    CHANNEL_UNIT: tl.constexpr,
    FILTER_UNIT: tl.constexpr,
    IN_FP32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    p = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    b = tl.program_id(2)
    channels = channel_units * CHANNEL_UNIT
    filters = filter_units * FILTER_UNIT
    taps = taps_r * taps_s
    inside = p < out_height * out_width
    row, column = first_tap(p, out_width, stride, pad_top, pad_left)
    plane = height * width
    x_ptr += b.to(tl.int64) * plane * channels_x
    x2_ptr += b.to(tl.int64) * plane * channels_x2
    c = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    known = c < channels_x + channels_x2
    planes = tl.where(c < channels_x, x_ptr + c * plane, x2_ptr + (c - channels_x) * plane)  # [BLOCK_K]

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    r, s, start = 0, 0, 0
    for _ in tl.range(0, taps):
        h = row + r
        w = column + s
        there = inside & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        pointers = planes[:, None] + (h * width + w)[None, :]
        x = tl.load(pointers, mask=known[:, None] & there[None, :], other=0.0)  # [BLOCK_K, BLOCK_M]
        weight = load_weight(w_ptr, n, r * taps_s + s, c, taps, channels, filters)
        acc = dot(tl.trans(rounded(x, w_ptr.dtype.element_ty, IN_FP32)), weight, acc, IN_FP32)
        r, s, start = next_step(r, s, start, channels, taps_s, BLOCK_K)

    out_pixels = out_height * out_width
    # fmt: off
    store_nhwc(
        acc, bias_ptr, residual_ptr, out_ptr, b, p, n, out_pixels, filters, filters, filters, 1, 0, has_residual,
        IN_FP32,
    )
    # fmt: on

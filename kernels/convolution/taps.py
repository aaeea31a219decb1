"""How a block walks over the taps of a convolution and reads its weights."""

# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def first_tap(p, out_width, stride, pad_top, pad_left):  # type: ignore[no-untyped-def]
    """[BLOCK_M] row and column in the input, maybe in its padding, that output pixels p see through their first tap."""
    return p // out_width * stride - pad_top, p % out_width * stride - pad_left


@triton.jit
def load_weight(w_ptr, n, tap, c, taps, channels, filters):  # type: ignore[no-untyped-def]
    """[BLOCK_K, BLOCK_N]: channels c of a tap, of filters n; 0 outside."""
    offsets = (n * (taps * channels))[None, :] + (tap * channels + c)[:, None]
    return tl.load(w_ptr + offsets, mask=(n < filters)[None, :] & (c < channels)[:, None], other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def next_step(r, s, start, channels, taps_s, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The next BLOCK_K channels of a tap, or the first of the next tap: by comparing, where dividing takes longer."""
    start += BLOCK_K
    tap_ends = start >= channels
    start = tl.where(tap_ends, 0, start)
    s = tl.where(tap_ends, s + 1, s)
    row_ends = s == taps_s
    return tl.where(row_ends, r + 1, r), tl.where(row_ends, 0, s), start

"""Online softmax inside a kernel: a tile of queries against keys and values, block by block, sums in fp32.

Rows of D numbers, D_MAIN + D_TAIL of them in registers; scores are in units of log 2, so that exponentials are exp2.

Source: Dao et al., arXiv 2205.14135 and Milakov and Gimelshein, arXiv 1805.02867.
"""

# ruff: noqa: N803

import triton
import triton.language as tl

from saishiki.kernels.dot import dot
from saishiki.kernels.rounding import rounded

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit  # type: ignore[untyped-decorator]
def load_rows(ptr, rows, row_stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """[rows, WIDTH]: the numbers from FIRST on of each row; 0 past D."""
    dims = FIRST + tl.arange(0, WIDTH)  # [WIDTH]
    pointers = ptr + rows.to(tl.int64)[:, None] * row_stride + dims[None, :]
    return tl.load(pointers, mask=dims[None, :] < D, other=0.0) if FIRST + WIDTH > D else tl.load(pointers)


@triton.jit  # type: ignore[untyped-decorator]
def store_rows(  # type: ignore[no-untyped-def]
    ptr,
    rows,
    row_stride,
    tile,
    inside,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    dims = FIRST + tl.arange(0, WIDTH)  # [WIDTH]
    pointers = ptr + rows.to(tl.int64)[:, None] * row_stride + dims[None, :]
    tile = rounded(tile, ptr.dtype.element_ty, IN_FP32)
    tl.store(pointers, tile, mask=inside[:, None] & (dims[None, :] < D))


@triton.jit
def softmax_step(scores, best, total):  # type: ignore[no-untyped-def]
    """Of some more scores: exponentials, how much those before shrink, and the largest and the sum so far."""
    new_best = tl.maximum(best, tl.max(scores, 1))
    # A row that has met none of its keys yet has no best: -inf - -inf would be NaN.
    shift = tl.where(new_best == float("-inf"), 0.0, new_best)
    p = tl.exp2(scores - shift[:, None])  # [BLOCK_T, BLOCK_S]
    decay = tl.exp2(best - shift)
    return p, decay, new_best, total * decay + tl.sum(p, 1)


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    q,  # [BLOCK_T, D_MAIN]
    q_tail,  # [BLOCK_T, D_TAIL]
    k_ptr,
    v_ptr,
    k_stride,
    v_stride,
    scale,
    first,
    last,
    is_fg,  # [BLOCK_T]
    fg_tokens,
    best,  # [BLOCK_T], the largest score so far, in units of log 2
    total,  # [BLOCK_T]
    acc,  # [BLOCK_T, D_MAIN]
    acc_tail,  # [BLOCK_T, D_TAIL]
    EDGE: tl.constexpr,
    SELECT: tl.constexpr,
    D: tl.constexpr,
    D_MAIN: tl.constexpr,
    D_TAIL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    """Online softmax over the keys from first to last - 1; where not EDGE, a multiple of BLOCK_S of them, for all rows.

    With SELECT a row takes only the keys of its own region.
    """
    for start in range(first, last, BLOCK_S):
        keys = start + tl.arange(0, BLOCK_S)  # [BLOCK_S]
        # Past the end the last key is read again: nothing outside [first, last) is touched.
        rows = tl.minimum(keys, last - 1) if EDGE else keys
        k = load_rows(k_ptr, rows, k_stride, 0, D_MAIN, D)  # [BLOCK_S, D_MAIN]
        scores = dot(q, tl.trans(k), tl.zeros([BLOCK_T, BLOCK_S], tl.float32), IN_FP32)
        if D_TAIL > 0:
            k_tail = load_rows(k_ptr, rows, k_stride, D_MAIN, D_TAIL, D)  # [BLOCK_S, D_TAIL]
            scores = dot(q_tail, tl.trans(k_tail), scores, IN_FP32)
        scores = scores * scale
        if EDGE:
            keep = (keys < last)[None, :]
            if SELECT:
                keep = keep & ((keys < fg_tokens)[None, :] == is_fg[:, None])
            scores = tl.where(keep, scores, float("-inf"))
        p, decay, best, total = softmax_step(scores, best, total)
        v = load_rows(v_ptr, rows, v_stride, 0, D_MAIN, D)
        p = rounded(p, v.dtype, IN_FP32)
        acc = dot(p, v, acc * decay[:, None], IN_FP32)
        if D_TAIL > 0:
            v_tail = load_rows(v_ptr, rows, v_stride, D_MAIN, D_TAIL, D)
            acc_tail = dot(p, v_tail, acc_tail * decay[:, None], IN_FP32)
    return best, total, acc, acc_tail


@triton.jit  # type: ignore[untyped-decorator]
def attend_keys(  # type: ignore[no-untyped-def]
    q,
    q_tail,
    k_ptr,
    v_ptr,
    k_stride,
    v_stride,
    scale,
    first,
    plain,
    last,
    is_fg,
    fg_tokens,
    SELECT: tl.constexpr,
    D: tl.constexpr,
    D_MAIN: tl.constexpr,
    D_TAIL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    """Of each row, sum of p, and p v not yet divided by it: over the keys from first on, from plain on with care."""
    best = tl.full([BLOCK_T], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    acc = tl.zeros([BLOCK_T, D_MAIN], tl.float32)
    acc_tail = tl.zeros([BLOCK_T, D_TAIL if D_TAIL > 0 else 16], tl.float32)
    # fmt: off
    best, total, acc, acc_tail = _attend(
        q, q_tail, k_ptr, v_ptr, k_stride, v_stride, scale, first, plain, is_fg, fg_tokens, best, total, acc, acc_tail,
        False, SELECT, D, D_MAIN, D_TAIL, BLOCK_T, BLOCK_S, IN_FP32,
    )
    best, total, acc, acc_tail = _attend(
        q, q_tail, k_ptr, v_ptr, k_stride, v_stride, scale, plain, last, is_fg, fg_tokens, best, total, acc, acc_tail,
        True, SELECT, D, D_MAIN, D_TAIL, BLOCK_T, BLOCK_S, IN_FP32,
    )
    # fmt: on
    # Nothing was attended to: the sums are 0, and so must the quotient be.
    return tl.where(total == 0.0, 1.0, total), acc, acc_tail

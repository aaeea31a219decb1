"""The Triton kernel of mask-guided cross-attention."""

# ruff: noqa: N803

import triton
import triton.language as tl

from saishiki.kernels.dot import dot
from saishiki.kernels.rounding import rounded

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit  # type: ignore[untyped-decorator]
def _load_rows(ptr, rows, row_stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """[rows, WIDTH]: the numbers from FIRST on of each row; 0 past D."""
    dims = FIRST + tl.arange(0, WIDTH)  # [WIDTH]
    pointers = ptr + rows.to(tl.int64)[:, None] * row_stride + dims[None, :]
    return tl.load(pointers, mask=dims[None, :] < D, other=0.0) if FIRST + WIDTH > D else tl.load(pointers)


@triton.jit  # type: ignore[untyped-decorator]
def _store_rows(  # type: ignore[no-untyped-def]
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


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    q,  # [BLOCK_T, D_MAIN]
    q_tail,  # [BLOCK_T, D_TAIL]
    k_ptr,
    v_ptr,
    row_stride,
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
    scale = LOG2_E / (D**0.5)
    for start in range(first, last, BLOCK_S):
        keys = start + tl.arange(0, BLOCK_S)  # [BLOCK_S]
        # Past the end the last key is read again: nothing outside [first, last) is touched.
        rows = tl.minimum(keys, last - 1) if EDGE else keys
        k = _load_rows(k_ptr, rows, row_stride, 0, D_MAIN, D)  # [BLOCK_S, D_MAIN]
        scores = dot(q, tl.trans(k), tl.zeros([BLOCK_T, BLOCK_S], tl.float32), IN_FP32)
        if D_TAIL > 0:
            k_tail = _load_rows(k_ptr, rows, row_stride, D_MAIN, D_TAIL, D)  # [BLOCK_S, D_TAIL]
            scores = dot(q_tail, tl.trans(k_tail), scores, IN_FP32)
        scores = scores * scale
        if EDGE:
            keep = (keys < last)[None, :]
            if SELECT:
                keep = keep & ((keys < fg_tokens)[None, :] == is_fg[:, None])
            scores = tl.where(keep, scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        # A row that has met none of its keys yet has no best: -inf - -inf would be NaN.
        shift = tl.where(new_best == float("-inf"), 0.0, new_best)
        p = tl.exp2(scores - shift[:, None])  # [BLOCK_T, BLOCK_S]
        decay = tl.exp2(best - shift)
        total = total * decay + tl.sum(p, 1)
        v = _load_rows(v_ptr, rows, row_stride, 0, D_MAIN, D)
        p = rounded(p, v.dtype, IN_FP32)
        acc = dot(p, v, acc * decay[:, None], IN_FP32)
        if D_TAIL > 0:
            v_tail = _load_rows(v_ptr, rows, row_stride, D_MAIN, D_TAIL, D)
            acc_tail = dot(p, v_tail, acc_tail * decay[:, None], IN_FP32)
        best = new_best
    return best, total, acc, acc_tail


@triton.jit  # type: ignore[untyped-decorator]
def _attend_keys(  # type: ignore[no-untyped-def]
    q,
    q_tail,
    k_ptr,
    v_ptr,
    row_stride,
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
        q, q_tail, k_ptr, v_ptr, row_stride, first, plain, is_fg, fg_tokens, best, total, acc, acc_tail,
        False, SELECT, D, D_MAIN, D_TAIL, BLOCK_T, BLOCK_S, IN_FP32,
    )
    best, total, acc, acc_tail = _attend(
        q, q_tail, k_ptr, v_ptr, row_stride, plain, last, is_fg, fg_tokens, best, total, acc, acc_tail,
        True, SELECT, D, D_MAIN, D_TAIL, BLOCK_T, BLOCK_S, IN_FP32,
    )
    # fmt: on
    # Nothing was attended to: the sums are 0, and so must the quotient be.
    return tl.where(total == 0.0, 1.0, total), acc, acc_tail


# A tile that lies in one region attends to that region's keys alone: loop bounds, not a choice between results.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["selection", "batch", "tokens", "keys", "fg_tokens", "heads"]
)
def _masked_split_cross_attention_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    q_bg_ptr,
    k_ptr,
    v_ptr,
    mask_ptr,
    kv_index_ptr,
    order_ptr,
    out_ptr,
    selection,
    threshold,
    fg_scale,
    bg_scale,
    merge_scale,
    batch,
    tokens,
    keys,
    fg_tokens,
    heads,
    BLEND: tl.constexpr,
    HAS_Q_BG: tl.constexpr,
    HAS_KV_INDEX: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    D: tl.constexpr,
    D_MAIN: tl.constexpr,
    D_TAIL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    row = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    row_stride = heads.to(tl.int64) * D
    q_offset = row.to(tl.int64) * tokens * row_stride + head * D
    q_ptr += q_offset
    q_bg_ptr += q_offset
    out_ptr += q_offset

    places = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    inside = places < tokens
    # Past the end the last token is computed again, so that it alone cannot make a tile one of two regions.
    rows = tl.minimum(places, tokens - 1)
    if HAS_ORDER:
        rows = tl.load(order_ptr + row.to(tl.int64) * tokens + rows)

    kv_row = row
    if HAS_KV_INDEX:
        kv_row = tl.load(kv_index_ptr + row)
        if kv_row < 0:
            _store_rows(
                out_ptr, rows, row_stride, tl.zeros([BLOCK_T, D_MAIN], tl.float32), inside, 0, D_MAIN, D, IN_FP32
            )
            if D_TAIL > 0:
                zeros = tl.zeros([BLOCK_T, D_TAIL], tl.float32)
                _store_rows(out_ptr, rows, row_stride, zeros, inside, D_MAIN, D_TAIL, D, IN_FP32)
            return
    kv_offset = kv_row.to(tl.int64) * keys * row_stride + head * D
    k_ptr += kv_offset
    v_ptr += kv_offset

    share = tl.load(mask_ptr + row.to(tl.int64) * tokens + rows)  # [BLOCK_T]
    is_fg = tl.where(selection == 0, share > threshold, (share < threshold) == 0)
    if BLEND:
        share = tl.where(selection == 2, share, is_fg.to(tl.float32))
        fg_weight = fg_scale * (1.0 - merge_scale) * share  # [BLOCK_T]
        bg_weight = bg_scale * (merge_scale * share + (1.0 - share))
        any_fg = tl.max((fg_weight != 0.0).to(tl.int32), 0)
        any_bg = tl.max((bg_weight != 0.0).to(tl.int32), 0)

        q = _load_rows(q_ptr, rows, row_stride, 0, D_MAIN, D)
        q_tail = q
        if D_TAIL > 0:
            q_tail = _load_rows(q_ptr, rows, row_stride, D_MAIN, D_TAIL, D)
        last = tl.where(any_fg > 0, fg_tokens, 0)
        plain = last // BLOCK_S * BLOCK_S
        # fmt: off
        total, acc, acc_tail = _attend_keys(
            q, q_tail, k_ptr, v_ptr, row_stride, 0, plain, last, is_fg, fg_tokens,
            False, D, D_MAIN, D_TAIL, BLOCK_T, BLOCK_S, IN_FP32,
        )
        # fmt: on
        weight = (fg_weight / total)[:, None]
        used = (fg_weight != 0.0)[:, None]
        out = tl.where(used, acc * weight, 0.0)
        out_tail = tl.where(used, acc_tail * weight, 0.0)

        if HAS_Q_BG:
            q = _load_rows(q_bg_ptr, rows, row_stride, 0, D_MAIN, D)
            q_tail = q
            if D_TAIL > 0:
                q_tail = _load_rows(q_bg_ptr, rows, row_stride, D_MAIN, D_TAIL, D)
        last = tl.where(any_bg > 0, keys, fg_tokens)
        plain = fg_tokens + (last - fg_tokens) // BLOCK_S * BLOCK_S
        # fmt: off
        total, acc, acc_tail = _attend_keys(
            q, q_tail, k_ptr, v_ptr, row_stride, fg_tokens, plain, last, is_fg, fg_tokens,
            False, D, D_MAIN, D_TAIL, BLOCK_T, BLOCK_S, IN_FP32,
        )
        # fmt: on
        weight = (bg_weight / total)[:, None]
        used = (bg_weight != 0.0)[:, None]
        out += tl.where(used, acc * weight, 0.0)
        out_tail += tl.where(used, acc_tail * weight, 0.0)
    else:
        any_fg = tl.max(is_fg.to(tl.int32), 0)
        any_bg = 1 - tl.min(is_fg.to(tl.int32), 0)
        q = _load_rows(q_ptr, rows, row_stride, 0, D_MAIN, D)
        q_tail = q
        if D_TAIL > 0:
            q_tail = _load_rows(q_ptr, rows, row_stride, D_MAIN, D_TAIL, D)
        if HAS_Q_BG:
            q = tl.where(is_fg[:, None], q, _load_rows(q_bg_ptr, rows, row_stride, 0, D_MAIN, D))
            if D_TAIL > 0:
                q_bg_tail = _load_rows(q_bg_ptr, rows, row_stride, D_MAIN, D_TAIL, D)
                q_tail = tl.where(is_fg[:, None], q_tail, q_bg_tail)
        first = tl.where(any_fg > 0, 0, fg_tokens)
        last = tl.where(any_bg > 0, keys, fg_tokens)
        mixed = any_fg + any_bg > 1
        plain = tl.where(mixed, first, first + (last - first) // BLOCK_S * BLOCK_S)
        # fmt: off
        total, acc, acc_tail = _attend_keys(
            q, q_tail, k_ptr, v_ptr, row_stride, first, plain, last, is_fg, fg_tokens,
            True, D, D_MAIN, D_TAIL, BLOCK_T, BLOCK_S, IN_FP32,
        )
        # fmt: on
        weight = (tl.where(is_fg, fg_scale, bg_scale) / total)[:, None]
        out = acc * weight
        out_tail = acc_tail * weight

    _store_rows(out_ptr, rows, row_stride, out, inside, 0, D_MAIN, D, IN_FP32)
    if D_TAIL > 0:
        _store_rows(out_ptr, rows, row_stride, out_tail, inside, D_MAIN, D_TAIL, D, IN_FP32)

"""The Triton kernel of mask-guided cross-attention.

Strides are in units of UNIT numbers, which 16 bytes at a time may be read by; both queries have the same, as have keys
and values; heads lie side by side in each token.
``merge_scale`` is a number, or with MERGE_IN_MEMORY the address of an fp32 one, which a recorded launch reads anew. A
launch without torch: :func:`saishiki.runtime.backends.launches.regions.masked_split_cross_attention_launches`.
"""

# ruff: noqa: N803

import triton
import triton.language as tl

from saishiki.kernels.foreground import is_foreground
from saishiki.kernels.online_softmax import LOG2_E, attend_keys, load_rows, store_rows

STRIDES = tuple(f"{name}_{axis}_units" for name in ("q", "kv") for axis in ("batch", "token"))


# A tile that lies in one region attends to that region's keys alone: loop bounds, not a choice between results.
# No stride makes kernels of its own by being 1 or a multiple of 16, but UNIT by what it divides.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["selection", "batch", "tokens", "keys", "fg_tokens", "heads", *STRIDES]
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
    q_batch_units,
    q_token_units,
    kv_batch_units,
    kv_token_units,
    BLEND: tl.constexpr,
    MERGE_IN_MEMORY: tl.constexpr,
    HAS_Q_BG: tl.constexpr,
    HAS_KV_INDEX: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    D_MAIN: tl.constexpr,
    D_TAIL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    row = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    scale = LOG2_E / (D**0.5)
    q_offset = row * q_batch_units * UNIT + head * D
    q_ptr += q_offset
    q_bg_ptr += q_offset
    q_stride = q_token_units.to(tl.int64) * UNIT
    kv_stride = kv_token_units.to(tl.int64) * UNIT
    out_stride = heads.to(tl.int64) * D
    out_ptr += row * tokens * out_stride + head * D

    places = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    inside = places < tokens
    # Past the end the last token is computed again, so that it alone cannot make a tile one of two regions.
    rows = tl.minimum(places, tokens - 1)
    if HAS_ORDER:
        rows = tl.load(order_ptr + row * tokens + rows)

    kv_row = row
    if HAS_KV_INDEX:
        kv_row = tl.load(kv_index_ptr + row).to(tl.int64)
        if kv_row < 0:
            store_rows(
                out_ptr, rows, out_stride, tl.zeros([BLOCK_T, D_MAIN], tl.float32), inside, 0, D_MAIN, D, IN_FP32
            )
            if D_TAIL > 0:
                zeros = tl.zeros([BLOCK_T, D_TAIL], tl.float32)
                store_rows(out_ptr, rows, out_stride, zeros, inside, D_MAIN, D_TAIL, D, IN_FP32)
            return
    kv_offset = kv_row * kv_batch_units * UNIT + head * D
    k_ptr += kv_offset
    v_ptr += kv_offset

    share = tl.load(mask_ptr + row * tokens + rows)  # [BLOCK_T]
    is_fg = is_foreground(share, threshold, selection)
    if BLEND:
        if MERGE_IN_MEMORY:
            merge_scale = tl.load(merge_scale)
        share = tl.where(selection == 2, share, is_fg.to(tl.float32))
        fg_weight = fg_scale * (1.0 - merge_scale) * share  # [BLOCK_T]
        bg_weight = bg_scale * (merge_scale * share + (1.0 - share))
        any_fg = tl.max((fg_weight != 0.0).to(tl.int32), 0)
        any_bg = tl.max((bg_weight != 0.0).to(tl.int32), 0)

        q = load_rows(q_ptr, rows, q_stride, 0, D_MAIN, D)
        q_tail = q
        if D_TAIL > 0:
            q_tail = load_rows(q_ptr, rows, q_stride, D_MAIN, D_TAIL, D)
        last = tl.where(any_fg > 0, fg_tokens, 0)
        plain = last // BLOCK_S * BLOCK_S
        # fmt: off
        total, acc, acc_tail = attend_keys(
            q, q_tail, k_ptr, v_ptr, kv_stride, kv_stride, scale, 0, plain, last, is_fg, fg_tokens,
            False, D, D_MAIN, D_TAIL, BLOCK_T, BLOCK_S, IN_FP32,
        )
        # fmt: on
        weight = (fg_weight / total)[:, None]
        used = (fg_weight != 0.0)[:, None]
        out = tl.where(used, acc * weight, 0.0)
        out_tail = tl.where(used, acc_tail * weight, 0.0)

        if HAS_Q_BG:
            q = load_rows(q_bg_ptr, rows, q_stride, 0, D_MAIN, D)
            q_tail = q
            if D_TAIL > 0:
                q_tail = load_rows(q_bg_ptr, rows, q_stride, D_MAIN, D_TAIL, D)
        last = tl.where(any_bg > 0, keys, fg_tokens)
        plain = fg_tokens + (last - fg_tokens) // BLOCK_S * BLOCK_S
        # fmt: off
        total, acc, acc_tail = attend_keys(
            q, q_tail, k_ptr, v_ptr, kv_stride, kv_stride, scale, fg_tokens, plain, last, is_fg, fg_tokens,
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
        q = load_rows(q_ptr, rows, q_stride, 0, D_MAIN, D)
        q_tail = q
        if D_TAIL > 0:
            q_tail = load_rows(q_ptr, rows, q_stride, D_MAIN, D_TAIL, D)
        if HAS_Q_BG:
            q = tl.where(is_fg[:, None], q, load_rows(q_bg_ptr, rows, q_stride, 0, D_MAIN, D))
            if D_TAIL > 0:
                q_bg_tail = load_rows(q_bg_ptr, rows, q_stride, D_MAIN, D_TAIL, D)
                q_tail = tl.where(is_fg[:, None], q_tail, q_bg_tail)
        first = tl.where(any_fg > 0, 0, fg_tokens)
        last = tl.where(any_bg > 0, keys, fg_tokens)
        mixed = any_fg + any_bg > 1
        plain = tl.where(mixed, first, first + (last - first) // BLOCK_S * BLOCK_S)
        # fmt: off
        total, acc, acc_tail = attend_keys(
            q, q_tail, k_ptr, v_ptr, kv_stride, kv_stride, scale, first, plain, last, is_fg, fg_tokens,
            True, D, D_MAIN, D_TAIL, BLOCK_T, BLOCK_S, IN_FP32,
        )
        # fmt: on
        weight = (tl.where(is_fg, fg_scale, bg_scale) / total)[:, None]
        out = acc * weight
        out_tail = acc_tail * weight

    store_rows(out_ptr, rows, out_stride, out, inside, 0, D_MAIN, D, IN_FP32)
    if D_TAIL > 0:
        store_rows(out_ptr, rows, out_stride, out_tail, inside, D_MAIN, D_TAIL, D, IN_FP32)

"""Attention with heads of at most 128: a program takes BLOCK_T queries of one head through all keys.

Strides are in units of UNIT numbers, which 16 bytes at a time may be read by. A launch without torch:
:func:`saishiki.runtime.backends.launches.attention.attention_launches` gives the arguments.
"""

# ruff: noqa: N803

import triton
import triton.language as tl

from saishiki.kernels.online_softmax import LOG2_E, attend_keys, load_rows, store_rows


@triton.jit(do_not_specialize=["batch", "heads", "tokens", "keys"])  # type: ignore[untyped-decorator]
def _attention_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    scale,
    batch,
    heads,
    tokens,
    keys,
    q_batch_units,
    q_head_units,
    q_token_units,
    k_batch_units,
    k_head_units,
    k_token_units,
    v_batch_units,
    v_head_units,
    v_token_units,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    D_MAIN: tl.constexpr,
    D_TAIL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    b = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    q_ptr += (b * q_batch_units + head * q_head_units) * UNIT
    k_ptr += (b * k_batch_units + head * k_head_units) * UNIT
    v_ptr += (b * v_batch_units + head * v_head_units) * UNIT
    out_stride = heads.to(tl.int64) * D
    out_ptr += b * tokens * out_stride + head * D

    places = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    inside = places < tokens
    rows = tl.minimum(places, tokens - 1)  # past the end the last token is computed again
    q_stride = q_token_units.to(tl.int64) * UNIT
    q = load_rows(q_ptr, rows, q_stride, 0, D_MAIN, D)
    q_tail = q
    if D_TAIL > 0:
        q_tail = load_rows(q_ptr, rows, q_stride, D_MAIN, D_TAIL, D)
    k_stride = k_token_units.to(tl.int64) * UNIT
    v_stride = v_token_units.to(tl.int64) * UNIT
    plain = keys // BLOCK_S * BLOCK_S
    # fmt: off
    total, acc, acc_tail = attend_keys(
        q, q_tail, k_ptr, v_ptr, k_stride, v_stride, scale * LOG2_E, 0, plain, keys, inside, keys,
        False, D, D_MAIN, D_TAIL, BLOCK_T, BLOCK_S, IN_FP32,
    )
    # fmt: on
    store_rows(out_ptr, rows, out_stride, acc / total[:, None], inside, 0, D_MAIN, D, IN_FP32)
    if D_TAIL > 0:
        store_rows(out_ptr, rows, out_stride, acc_tail / total[:, None], inside, D_MAIN, D_TAIL, D, IN_FP32)

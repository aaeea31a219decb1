"""Attention with wider heads, such as the single one of 512 of a VAE: arguments and launch as the narrow kernel's.

A row of so many numbers fits no registers beside the sums, so queries and keys are read in parts of D_PART numbers, the
queries again for every block of keys: from a cache, since a block's queries are few.
"""

# ruff: noqa: N803

import triton
import triton.language as tl

from saishiki.kernels.dot import dot
from saishiki.kernels.online_softmax import LOG2_E, load_rows, softmax_step, store_rows
from saishiki.kernels.rounding import rounded


@triton.jit  # type: ignore[untyped-decorator]
def _load_part(ptr, rows, row_stride, first, WIDTH: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """[rows, WIDTH]: the numbers from first on of each row; 0 past D."""
    dims = first + tl.arange(0, WIDTH)  # [WIDTH]
    return tl.load(ptr + rows.to(tl.int64)[:, None] * row_stride + dims[None, :], mask=dims[None, :] < D, other=0.0)


@triton.jit(do_not_specialize=["batch", "heads", "tokens", "keys"])  # type: ignore[untyped-decorator]
def _wide_attention_kernel(  # type: ignore[no-untyped-def]
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
    D_PART: tl.constexpr,
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
    k_stride = k_token_units.to(tl.int64) * UNIT
    v_stride = v_token_units.to(tl.int64) * UNIT
    best = tl.full([BLOCK_T], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    acc = tl.zeros([BLOCK_T, D_MAIN], tl.float32)
    for start in range(0, keys, BLOCK_S):
        key = start + tl.arange(0, BLOCK_S)  # [BLOCK_S]
        key_rows = tl.minimum(key, keys - 1)  # past the end the last key is read again
        scores = tl.zeros([BLOCK_T, BLOCK_S], tl.float32)
        for first in range(0, D, D_PART):
            q = _load_part(q_ptr, rows, q_stride, first, D_PART, D)  # [BLOCK_T, D_PART]
            k = _load_part(k_ptr, key_rows, k_stride, first, D_PART, D)  # [BLOCK_S, D_PART]
            scores = dot(q, tl.trans(k), scores, IN_FP32)
        scores = tl.where((key < keys)[None, :], scores * (scale * LOG2_E), float("-inf"))
        p, decay, best, total = softmax_step(scores, best, total)
        v = load_rows(v_ptr, key_rows, v_stride, 0, D_MAIN, D)  # [BLOCK_S, D_MAIN]
        acc = dot(rounded(p, v.dtype, IN_FP32), v, acc * decay[:, None], IN_FP32)
    store_rows(out_ptr, rows, out_stride, acc / total[:, None], inside, 0, D_MAIN, D, IN_FP32)

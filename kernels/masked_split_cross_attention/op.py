"""Mask-guided cross-attention: a token attends to the reference's foreground or to its background, or to both.

With ``A_f`` and ``A_b = softmax(q k^T / sqrt(D)) v`` over the foreground's and the background's keys, each times
``reference_scale``: ``f = A_f * fg_scale``, ``b = A_b * bg_scale``, ``f <- f (1 - merge_scale) + b merge_scale``, and
``out = f`` on foreground tokens, ``b`` on background tokens, or ``f M + b (1 - M)`` with the mask M where selection is
"blend". What each generation of ColorizeDiffusion means by that is in
:data:`~saishiki.kernels.masked_split_cross_attention.semantics.SEMANTICS`.

Layout: heads side by side in the last axis, (B, T, heads * D), as the projections before and after have it. fp16, bf16
or fp32; scores and sums in fp32, the probabilities rounded to the dtype of v before they meet it. Fused are both
attentions, the choice, the scales and the merge: one launch, no score matrix. A tile of queries that lies in one region
reads and computes that region's keys alone; with ``order``, tokens sorted by their mask, all tiles but one do.

Source: the published ColorizeDiffusion and ColorizeDiffusionXL, observed from outside; Dao et al., arXiv 2205.14135 and
Milakov and Gimelshein, arXiv 1805.02867 for the online softmax.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from saishiki.kernels.checks import FLOATS, INTERPRETED, check_tensor
from saishiki.kernels.masked_split_cross_attention.kernel import _masked_split_cross_attention_kernel
from saishiki.kernels.masked_split_cross_attention.semantics import SELECTIONS, Selection
from saishiki.kernels.masked_split_cross_attention.variants import MAX_HEAD_DIM, split_head_dim, tile_sizes
from saishiki.kernels.registration import register_op
from saishiki.runtime.backends.launches.regions import UNIT

MAX_GRID_Y = 65535


def masked_split_cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    heads: int,
    selection: Selection,
    threshold: float = 0.05,
    fg_scale: float = 1.0,
    bg_scale: float = 1.0,
    merge_scale: float = 0.0,
    reference_scale: float = 1.0,
    fg_tokens: int | None = None,
    q_bg: Tensor | None = None,
    kv_index: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """(B, T, heads * D) in the dtype of q: what each token takes from the reference's foreground and background.

    Args:
        q: (B, T, heads * D) fp16, bf16 or fp32; D from 1 to 128. Where the regions have query projections of their own
            and a token needs one of them, each token's own, as :func:`~saishiki.kernels.split_projection` gives it.
        k: (B_kv, S, heads * D), as q; the first ``fg_tokens`` are the foreground's. Finite, as v is: in a tile of both
            regions the other region's keys count 0 times, and 0 times infinity is not 0.
        v: as k.
        mask: (B, T) fp32, so that the comparison is the one of the unrounded mask; may leave [0, 1].
        selection: "foreground_above", "background_below" or "blend"; see
            :data:`~saishiki.kernels.masked_split_cross_attention.semantics.Selection`.
        threshold: not used by "blend".
        merge_scale: 0 to 1.
        fg_tokens: 1 to S - 1; where None, S // 2, and S must be even.
        q_bg: as q, the background's queries of every token, where they differ from q. Needed where a token takes from
            both regions (``merge_scale`` above 0, or "blend"); elsewhere background tokens take their row from it, and
            the packed q is cheaper.
        kv_index: (B,) int32, the row of k and v that each row of q reads; -1 stands for a context of zeros, as in
            classifier-free guidance, whose result is 0 and reads nothing. Other values than -1 to B_kv - 1 read foreign
            memory: they lie on the device and are not checked.
        order: (B, T) int32, a permutation of each row's tokens, such as
            :func:`~saishiki.kernels.masked_split_cross_attention.reference.token_order` makes of the mask. Tiles take
            their tokens in this order: the result is the same, and tiles of one region are cheaper. Not checked either;
            a token that is left out keeps what its memory held.

    Raises ``TypeError`` for other dtypes, ``ValueError`` for shapes, strides, devices or numbers that do not fit, and
    ``NotImplementedError`` from a backward pass.
    """
    numbers = (threshold, fg_scale, bg_scale, merge_scale, reference_scale)
    _check_numbers(selection, numbers)
    _check_tensors(q, k, v, mask, q_bg, kv_index, heads)
    if order is not None:
        check_tensor("order", order, mask.shape, (torch.int32,), q.device)
    fg_tokens = _foreground_tokens(fg_tokens, k.shape[1])
    result: Tensor = _OP(q, k, v, mask, heads, selection, *map(float, numbers), fg_tokens, q_bg, kv_index, order)
    return result


def _check_numbers(selection: str, numbers: tuple[float, ...]) -> None:
    if selection not in SELECTIONS:
        raise ValueError(f"expected selection to be one of {', '.join(map(repr, SELECTIONS))}, got {selection!r}")
    names = ("threshold", "fg_scale", "bg_scale", "merge_scale", "reference_scale")
    for name, number in zip(names, numbers, strict=True):
        if not math.isfinite(number):
            raise ValueError(f"expected {name} to be finite, got {number}")
    merge_scale = numbers[3]
    if not 0 <= merge_scale <= 1:
        raise ValueError(f"expected merge_scale from 0 to 1, got {merge_scale}")


def _check_tensors(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, q_bg: Tensor | None, kv_index: Tensor | None, heads: int
) -> None:
    for name, tensor in (("q", q), ("k", k)):
        if tensor.ndim != 3:
            raise ValueError(f"expected {name} (B, tokens, heads * D), got {tuple(tensor.shape)}")
    batch, tokens, width = q.shape
    if heads < 1 or width < heads or width % heads:
        raise ValueError(f"expected heads to divide the width of q, got {heads} heads for a width of {width}")
    if width // heads > MAX_HEAD_DIM:
        raise ValueError(
            f"expected heads of at most {MAX_HEAD_DIM}, got {width // heads} ({width} over {heads} heads); "
            "call masked_split_cross_attention_reference"
        )
    check_tensor("q", q, q.shape, FLOATS, q.device)
    rows = k.shape[0] if kv_index is not None else batch
    if k.shape[0] != rows:
        raise ValueError(f"expected k of {batch} rows as q has, got {k.shape[0]}; name the row of each in kv_index")
    check_tensor("k", k, (rows, k.shape[1], width), (q.dtype,), q.device)
    check_tensor("v", v, k.shape, (q.dtype,), q.device)
    check_tensor("mask", mask, (batch, tokens), (torch.float32,), q.device)
    if q_bg is not None:
        check_tensor("q_bg", q_bg, q.shape, (q.dtype,), q.device)
    if kv_index is not None:
        check_tensor("kv_index", kv_index, (batch,), (torch.int32,), q.device)


def _foreground_tokens(fg_tokens: int | None, keys: int) -> int:
    if keys < 2:
        raise ValueError(f"expected at least 2 keys, one of each region, got {keys}")
    if fg_tokens is None:
        if keys % 2:
            raise ValueError(f"expected an even number of keys where fg_tokens is None, got {keys}; give fg_tokens")
        fg_tokens = keys // 2
    if not 0 < fg_tokens < keys:
        raise ValueError(f"expected fg_tokens from 1 to {keys - 1}, got {fg_tokens}; each region needs a key")
    return fg_tokens


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    heads: int,
    selection: str,
    threshold: float,
    fg_scale: float,
    bg_scale: float,
    merge_scale: float,
    reference_scale: float,
    fg_tokens: int,
    q_bg: Tensor | None,
    kv_index: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    out = torch.empty_like(q)
    if not q.numel():
        return out
    batch, tokens, width = q.shape
    # Here and not with the other checks, where it would bound the dynamic batch of an exported graph.
    if batch * heads > MAX_GRID_Y:
        raise ValueError(f"expected B * heads of at most {MAX_GRID_Y}, got {batch * heads}; split the batch")
    blend = selection == "blend" or merge_scale > 0
    head_dim = width // heads
    main, tail = split_head_dim(head_dim)
    tiles = tile_sizes(head_dim, fp32=q.dtype == torch.float32, blend=blend)
    strides = [stride for count in (tokens, k.shape[1]) for stride in (count * width, width)]
    unit = math.gcd(UNIT, width)
    _masked_split_cross_attention_kernel[triton.cdiv(tokens, tiles["BLOCK_T"]), batch * heads](
        q,
        q if q_bg is None else q_bg,
        k,
        v,
        mask,
        kv_index,
        order,
        out,
        SELECTIONS.index(selection),
        threshold,
        fg_scale * reference_scale,
        bg_scale * reference_scale,
        merge_scale,
        batch,
        tokens,
        k.shape[1],
        fg_tokens,
        heads,
        *(stride // unit for stride in strides),
        BLEND=blend,
        MERGE_IN_MEMORY=False,
        HAS_Q_BG=q_bg is not None,
        HAS_KV_INDEX=kv_index is not None,
        HAS_ORDER=order is not None,
        UNIT=unit,
        D=head_dim,
        D_MAIN=main,
        D_TAIL=tail,
        IN_FP32=INTERPRETED and q.dtype == torch.bfloat16,
        **tiles,
    )
    return out


def _fake(q: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(q)


_OP = register_op("masked_split_cross_attention", _run, _fake)

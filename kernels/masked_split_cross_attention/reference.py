"""Mask-guided cross-attention in plain torch: every branch of every token, then the choice."""

import torch
import torch.nn.functional as F
from torch import Tensor

from saishiki.kernels.masked_split_cross_attention.semantics import Selection


def is_foreground(mask: Tensor, *, selection: Selection, threshold: float) -> Tensor:
    """Whether a token is foreground: bool, of the shape of mask. Not for "blend", which has no such tokens."""
    if selection == "foreground_above":
        return mask > threshold
    if selection == "background_below":
        return ~(mask < threshold)
    raise ValueError(f"expected selection 'foreground_above' or 'background_below', got {selection!r}")


def token_order(mask: Tensor) -> Tensor:
    """(B, T) int32: the tokens of each row by ascending mask, and by place where it is equal.

    Whatever the threshold, tokens of one region then follow each other. The mask is constant over the denoising steps,
    so this is computed once per picture and level.
    """
    return mask.argsort(dim=1, stable=True).to(torch.int32)


def masked_split_cross_attention_reference(
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
    """Of :func:`masked_split_cross_attention`, the same arguments and result, in any dtype: (B, T, heads * D).

    ``order`` makes no difference here.
    """
    if fg_tokens is None:
        fg_tokens = k.shape[1] // 2
    if q_bg is None:
        q_bg = q
    if kv_index is not None:
        rows = kv_index.clamp(min=0).long()
        k, v = k[rows], v[rows]
    fg = fg_scale * (reference_scale * _attention(q, k[:, :fg_tokens], v[:, :fg_tokens], heads))
    bg = bg_scale * (reference_scale * _attention(q_bg, k[:, fg_tokens:], v[:, fg_tokens:], heads))
    if merge_scale:
        fg = fg * (1.0 - merge_scale) + bg * merge_scale
    if selection == "blend":
        share = mask[..., None].to(q.dtype)
        out = fg * share + bg * (1.0 - share)
    else:
        out = torch.where(is_foreground(mask, selection=selection, threshold=threshold)[..., None], fg, bg)
    if kv_index is not None:
        out = out.masked_fill((kv_index < 0)[:, None, None], 0.0)
    return out


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))  # (B, heads, tokens, D)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

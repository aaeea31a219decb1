"""Split cross-attention: one operator of ours in an exported graph, plain torch where a network just runs.

The kernel's operator takes its merge share as a number, but one engine shall serve every share. So where regions are
merged the graph gets an operator that takes it as a tensor, ``merging_split_cross_attention``; it becomes the same kind
of ONNX function, and has a kernel in plans alone.
"""

from typing import Any

import torch
from torch import Tensor

from saishiki.kernels import (
    masked_split_cross_attention,
    masked_split_cross_attention_reference,
    split_projection,
    split_projection_reference,
)


def split_attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, merge_scale: float | Tensor, **options: Any
) -> Tensor:
    """(B, T, C), with the arguments of :func:`~saishiki.kernels.masked_split_cross_attention`.

    merge_scale: a number, or as an input of a graph (1,).
    """
    if not torch.compiler.is_exporting():
        return masked_split_cross_attention_reference(q, k, v, mask, merge_scale=merge_scale, **options)  # type: ignore[arg-type]
    options["fg_tokens"] = k.shape[1] // 2
    if isinstance(merge_scale, Tensor):
        merged: Tensor = _merging_split_cross_attention(q, k, v, mask, merge_scale, **options)
        return merged
    return masked_split_cross_attention(q, k, v, mask, merge_scale=merge_scale, **options)


def split_project(x: Tensor, w_fg: Tensor, w_bg: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """(B, T, N), with the arguments of :func:`~saishiki.kernels.split_projection`."""
    project = split_projection if torch.compiler.is_exporting() else split_projection_reference
    return project(x, w_fg, w_bg, mask, **options)


@torch.library.custom_op("saishiki::merging_split_cross_attention", mutates_args=())
def _merging_split_cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    merge_scale: Tensor,
    heads: int,
    selection: str,
    threshold: float,
    fg_tokens: int,
    q_bg: Tensor | None,
) -> Tensor:
    return masked_split_cross_attention_reference(
        q,
        k,
        v,
        mask,
        heads=heads,
        selection=selection,  # type: ignore[arg-type]
        threshold=threshold,
        merge_scale=float(merge_scale),
        fg_tokens=fg_tokens,
        q_bg=q_bg,
    )


@_merging_split_cross_attention.register_fake
def _(q: Tensor, *arguments: Any, **options: Any) -> Tensor:
    return torch.empty_like(q)

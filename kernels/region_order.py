"""The tokens of each row by their region: the background's first, then the foreground's, each by place.

What :func:`~saishiki.kernels.masked_split_cross_attention` and :func:`~saishiki.kernels.split_projection` take as
``order``: with it no more than one of a row's tiles holds tokens of both regions. Where the threshold is known this is
all that sorting by mask is for, and it takes one launch and no sort: a program counts the foreground of one row, then
walks over the row once more, BLOCK tokens at a time, and puts each at the place that the numbers of either region
before it give. Nothing depends on the order in which threads run.

Layout: mask (B, T) fp32, out (B, T) int32. A launch without torch:
:func:`saishiki.runtime.backends.launches.regions.region_order_launches`.
"""

# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

from saishiki.kernels.checks import check_runs_here, check_tensor
from saishiki.kernels.foreground import is_foreground
from saishiki.kernels.masked_split_cross_attention import reference
from saishiki.kernels.masked_split_cross_attention.semantics import SELECTIONS, Selection
from saishiki.kernels.variant import Variant

BLOCK = 1024


def region_order_reference(mask: Tensor, *, selection: Selection, threshold: float = 0.05) -> Tensor:
    """Of :func:`region_order`, the same arguments and result."""
    chosen = reference.is_foreground(mask, selection=selection, threshold=threshold)
    return chosen.int().argsort(dim=1, stable=True).to(torch.int32)


@triton.jit(do_not_specialize=["selection", "batch", "tokens"])  # type: ignore[untyped-decorator]
def _region_order_kernel(  # type: ignore[no-untyped-def]
    mask_ptr,
    out_ptr,
    selection,
    threshold,
    batch,
    tokens,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * tokens
    mask_ptr += first
    out_ptr += first
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)  # [BLOCK]
        inside = token < tokens
        share = tl.load(mask_ptr + token, mask=inside, other=0.0)
        count += (inside & is_foreground(share, threshold, selection)).to(tl.int32)
    background = tokens - tl.sum(count, 0)
    before = 0  # tokens of the foreground in the blocks before
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)  # [BLOCK]
        inside = token < tokens
        share = tl.load(mask_ptr + token, mask=inside, other=0.0)
        fg = (inside & is_foreground(share, threshold, selection)).to(tl.int32)
        earlier = before + tl.cumsum(fg, 0) - fg  # tokens of the foreground before this one
        place = tl.where(fg > 0, background + earlier, token - earlier)
        tl.store(out_ptr + place, token, mask=inside)
        before += tl.sum(fg, 0)


def region_order(mask: Tensor, *, selection: Selection, threshold: float = 0.05) -> Tensor:
    """(B, T) int32, a permutation of each row's tokens.

    Args:
        mask: (B, T) fp32, contiguous; B and T may be 0.
        selection: "foreground_above" or "background_below"; see
            :data:`~saishiki.kernels.masked_split_cross_attention.semantics.Selection`.

    Raises ``TypeError`` for another dtype, ``ValueError`` for shapes, strides and a selection that do not fit.
    """
    if mask.ndim != 2:
        raise ValueError(f"expected mask (B, T), got {tuple(mask.shape)}")
    if selection not in SELECTIONS[:2]:
        raise ValueError(f"expected selection 'foreground_above' or 'background_below', got {selection!r}")
    check_tensor("mask", mask, mask.shape, (torch.float32,), mask.device)
    check_runs_here("region_order", mask)
    out = torch.empty(mask.shape, dtype=torch.int32, device=mask.device)
    batch, tokens = mask.shape
    if out.numel():
        _region_order_kernel[(batch,)](
            mask, out, SELECTIONS.index(selection), float(threshold), batch, tokens, BLOCK=BLOCK
        )
    return out


VARIANTS: tuple[Variant, ...] = (
    Variant(
        name="region_order",
        kernel=_region_order_kernel,
        signature={
            "mask_ptr": "*fp32",
            "out_ptr": "*i32",
            "selection": "i32",
            "threshold": "fp32",
            **dict.fromkeys(("batch", "tokens"), "i32"),
        },
        constexprs={"BLOCK": BLOCK},
        aligned=("mask_ptr", "out_ptr"),
        grid=((("batch",), 1),),
        max_registers=64,
        num_warps=8,
    ),
)

"""Mask-guided cross-attention of ColorizeDiffusion, in one launch."""

from saishiki.kernels.masked_split_cross_attention.op import masked_split_cross_attention
from saishiki.kernels.masked_split_cross_attention.reference import (
    masked_split_cross_attention_reference,
    token_order,
)
from saishiki.kernels.masked_split_cross_attention.semantics import (
    SELECTIONS,
    SEMANTICS,
    Selection,
    SplitArguments,
    SplitSemantics,
)
from saishiki.kernels.masked_split_cross_attention.variants import VARIANTS

__all__ = [
    "SELECTIONS",
    "SEMANTICS",
    "VARIANTS",
    "Selection",
    "SplitArguments",
    "SplitSemantics",
    "masked_split_cross_attention",
    "masked_split_cross_attention_reference",
    "token_order",
]

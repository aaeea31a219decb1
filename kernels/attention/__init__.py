"""Attention of every head, in one launch."""

from saishiki.kernels.attention.op import attention, attention_reference
from saishiki.kernels.attention.variants import VARIANTS

__all__ = ["VARIANTS", "attention", "attention_reference"]

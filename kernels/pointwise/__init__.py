"""Copies, and what is computed number by number, at any strides, in one launch."""

from saishiki.kernels.pointwise.op import pointwise, pointwise_reference
from saishiki.kernels.pointwise.variants import VARIANTS

__all__ = ["VARIANTS", "pointwise", "pointwise_reference"]

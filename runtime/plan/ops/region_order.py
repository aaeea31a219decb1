"""The tokens of each row by their region, which attention and projection by region take them in.

The kernel is ``saishiki.kernels.region_order``. A mask changes from picture to picture, not from step to step, and
many operations share one: so its order is an operation of its own.
"""

from typing import ClassVar

import numpy as np

from saishiki.runtime.plan.extents import Extents, Strided, Tensors
from saishiki.runtime.plan.ops.op import Cost, Op, OpBackend
from saishiki.runtime.plan.ops.regions import is_foreground


class RegionOrder(Op, tag="region_order", frozen=True):
    """The places of background tokens, then those of foreground tokens, each in ascending order.

    Args:
        mask: (B, T) fp32.
        out: (B, T) int32.
        foreground_at_threshold: whether a mask that equals the threshold is foreground.
    """

    mask: Strided
    out: str
    threshold: float
    foreground_at_threshold: bool

    backends: ClassVar[tuple[OpBackend, ...]] = ("triton",)

    def reads(self) -> tuple[str, ...]:
        return (self.mask.buffer,)

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def compute(self, tensors: Tensors) -> None:
        chosen = is_foreground(tensors.view(self.mask), self.threshold, at_threshold=self.foreground_at_threshold)
        tensors[self.out][:] = np.argsort(chosen, axis=1, kind="stable")

    def cost(self, extents: Extents) -> Cost:
        return Cost(0, extents.strided_nbytes(self.mask) + extents.nbytes(self.out))

"""A linear layer over rows: ``y = x w^T + residual + bias``."""

import math
from typing import ClassVar

from saishiki.runtime.plan.extents import Extents, Strided, Tensors
from saishiki.runtime.plan.ops.op import Cost, Op, OpBackend, exact


class Matmul(Op, tag="matmul", frozen=True):
    """Summed in fp32 and rounded once.

    Args:
        x: (rows, K), whose rows may be parts of longer ones, as those of out and residual may be.
        weight: (N, K).
        out: (rows, N); fp32 where it is of the interface.
        bias: (N,).
        residual: (rows, N), added before the bias.
    """

    x: Strided
    weight: str
    out: Strided
    bias: str | None = None
    residual: Strided | None = None

    backends: ClassVar[tuple[OpBackend, ...]] = ("cudnn", "triton")

    def reads(self) -> tuple[str, ...]:
        bias = (self.bias,) if self.bias else ()
        return (self.x.buffer, self.weight, *bias, *([self.residual.buffer] if self.residual else []))

    def writes(self) -> tuple[str, ...]:
        return (self.out.buffer,)

    def compute(self, tensors: Tensors) -> None:
        y = exact(tensors.view(self.x)) @ exact(tensors[self.weight]).T
        if self.residual:
            y += exact(tensors.view(self.residual))
        if self.bias:
            y += exact(tensors[self.bias])
        tensors.view(self.out)[:] = y

    def cost(self, extents: Extents) -> Cost:
        rows = (self.x, self.out, *([self.residual] if self.residual else []))
        weights = (self.weight, *([self.bias] if self.bias else []))
        flops = 2 * math.prod(extents.strided_shape(self.x)) * extents.shape(self.weight)[0]
        return Cost(flops, sum(map(extents.strided_nbytes, rows)) + extents.nbytes(*weights))

"""LayerNorm over rows: ``(x - mean) / sqrt(variance + epsilon) * weight + bias``."""

from typing import ClassVar

import numpy as np

from saishiki.runtime.plan.extents import Extents, Strided, Tensors
from saishiki.runtime.plan.ops.op import Cost, Op, OpBackend, exact


class LayerNorm(Op, tag="layer_norm", frozen=True):
    """Statistics in fp32, rounded once.

    Args:
        x: (rows, C), normalised over C; rows may be parts of longer ones.
        weight: (C,) fp32, as is bias; None stands for ones and zeros.
        out: (..., C), as many rows.
    """

    x: Strided
    out: str
    epsilon: float
    weight: str | None = None
    bias: str | None = None

    backends: ClassVar[tuple[OpBackend, ...]] = ("triton",)

    def reads(self) -> tuple[str, ...]:
        return tuple(name for name in (self.x.buffer, self.weight, self.bias) if name)

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def compute(self, tensors: Tensors) -> None:
        x, out = exact(tensors.view(self.x)), tensors[self.out]
        mean = x.mean(axis=-1, keepdims=True, dtype=np.float64)
        variance = x.var(axis=-1, keepdims=True, dtype=np.float64)
        y = (x - mean) / np.sqrt(variance + self.epsilon)
        y = y * tensors[self.weight] if self.weight else y
        out[:] = (y + tensors[self.bias] if self.bias else y).reshape(out.shape)

    def cost(self, extents: Extents) -> Cost:
        vectors = [name for name in (self.weight, self.bias) if name]
        return Cost(0, extents.strided_nbytes(self.x) + extents.nbytes(self.out, *vectors))

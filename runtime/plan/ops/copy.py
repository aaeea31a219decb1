"""Copies strided parts behind one another: what is left of concatenating, casting, expanding and changing layouts."""

from typing import ClassVar

from saishiki.runtime.plan.extents import Extents, Strided, Tensors
from saishiki.runtime.plan.ops.op import Cost, Op, OpBackend


class Copy(Op, tag="copy", frozen=True):
    """``out = parts[0] | parts[1] | ...`` along an axis, in the dtype of out, and zeros where out is longer.

    Args:
        out: where to: a part of a buffer, or all of it in some order of its axes.
    """

    parts: tuple[Strided, ...]
    axis: int
    out: Strided

    backends: ClassVar[tuple[OpBackend, ...]] = ("triton",)

    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.buffer for part in self.parts))

    def writes(self) -> tuple[str, ...]:
        return (self.out.buffer,)

    def compute(self, tensors: Tensors) -> None:
        out = tensors.view(self.out).swapaxes(0, self.axis)
        start = 0
        for part in self.parts:
            source = tensors.view(part).swapaxes(0, self.axis)
            out[start : start + len(source)] = source
            start += len(source)
        out[start:] = 0

    def cost(self, extents: Extents) -> Cost:
        return Cost(0, sum(map(extents.strided_nbytes, self.parts)) + extents.strided_nbytes(self.out))

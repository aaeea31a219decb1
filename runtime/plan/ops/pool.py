"""Averages: of each 2x2 pixels, and of all pixels."""

from typing import ClassVar

import numpy as np

from saishiki.runtime.plan.extents import Extents, Tensors
from saishiki.runtime.plan.ops.op import Cost, Op, OpBackend, exact


class _Average(Op, frozen=True):
    """Of x, into out."""

    x: str
    out: str

    backends: ClassVar[tuple[OpBackend, ...]] = ("triton",)

    def reads(self) -> tuple[str, ...]:
        return (self.x,)

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def cost(self, extents: Extents) -> Cost:
        return Cost(0, extents.nbytes(self.x, self.out))


class Pool(_Average, tag="pool", frozen=True):
    """The mean of each 2x2 pixels: (B, H, W, C) -> (B, H/2, W/2, C)."""

    def compute(self, tensors: Tensors) -> None:
        x, out = exact(tensors[self.x]), tensors[self.out]
        batch, height, width, channels = out.shape
        out[:] = x.reshape(batch, height, 2, width, 2, channels).mean(axis=(2, 4))


class Mean(_Average, tag="mean", frozen=True):
    """The mean of all pixels: (B, H, W, C) -> (B, C)."""

    def compute(self, tensors: Tensors) -> None:
        out = tensors[self.out]
        out[:] = exact(tensors[self.x]).mean(axis=(1, 2), dtype=np.float64)[:, : out.shape[1]]

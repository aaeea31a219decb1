"""GroupNorm in two launches: its statistics, and what applies them together with what lies around the norm.

Both read ``u = (nearest2x(x) | concat) + residual``, put together on the way in, so that no launch is spent on
concatenating, upsampling or adding. The kernels are ``saishiki.kernels.group_norm_silu``'s.
"""

from typing import ClassVar

import msgspec
import numpy as np

from saishiki.runtime.plan.extents import Extents, Tensors
from saishiki.runtime.plan.ops.op import Cost, Op, OpBackend, exact, silu
from saishiki.runtime.signature import Array


class NormInput(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is normalised.

    Args:
        x: (B, ..., C1), pixels in any number of axes where nothing else joins it.
        concat: (B, H', W', C2), behind x in channels.
        upsample: x alone, nearest neighbour by two.
        residual: (B, H', W', C1 + C2).
    """

    x: str
    concat: str | None = None
    upsample: bool = False
    residual: str | None = None

    def names(self) -> tuple[str, ...]:
        """The tensors that it reads."""
        return tuple(name for name in (self.x, self.concat, self.residual) if name)

    def compute(self, tensors: Tensors) -> Array:
        """u in fp32: (B, H', W', C), or as x where that has other axes."""
        u = exact(tensors[self.x])
        if self.upsample:
            u = u.repeat(2, axis=1).repeat(2, axis=2)
        if self.concat:
            u = np.concatenate([u, exact(tensors[self.concat])], axis=3)
        return u + exact(tensors[self.residual]) if self.residual else u


class InputNorm(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A group norm by itself: ``activation((u - mean) * rstd * weight + bias)``.

    Args:
        statistics: (B, groups, 2) fp32, as :class:`NormStatistics` writes it.
        weight: (C,) fp32, as is bias.
    """

    statistics: str
    weight: str
    bias: str
    silu: bool

    def names(self) -> tuple[str, ...]:
        """The tensors that it reads."""
        return self.statistics, self.weight, self.bias

    def compute(self, u: Array, tensors: Tensors) -> Array:
        """u (B, ..., C) normalised, in fp32."""
        statistics = tensors[self.statistics]
        each = u.shape[-1] // statistics.shape[1]
        by_channel = statistics.repeat(each, axis=1).reshape(len(u), *[1] * (u.ndim - 2), u.shape[-1], 2)
        mean, rstd = by_channel[..., 0], by_channel[..., 1]
        y: Array = (u - mean) * (rstd * tensors[self.weight]) + tensors[self.bias]
        return silu(y) if self.silu else y


class NormStatistics(Op, tag="norm_statistics", frozen=True):
    """Mean and reciprocal deviation of each group of each picture.

    Args:
        out: (B, groups, 2) fp32.
    """

    input: NormInput
    out: str
    groups: int
    epsilon: float

    backends: ClassVar[tuple[OpBackend, ...]] = ("triton",)

    def reads(self) -> tuple[str, ...]:
        return self.input.names()

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def compute(self, tensors: Tensors) -> None:
        u = self.input.compute(tensors)
        grouped = u.reshape(len(u), -1, self.groups, u.shape[-1] // self.groups)
        mean = grouped.mean(axis=(1, 3), dtype=np.float64)
        variance = grouped.var(axis=(1, 3), dtype=np.float64)
        tensors[self.out][:] = np.stack([mean, 1 / np.sqrt(variance + self.epsilon)], axis=2)

    def cost(self, extents: Extents) -> Cost:
        return Cost(0, extents.nbytes(*self.input.names(), self.out))


class NormApply(Op, tag="norm_apply", frozen=True):
    """A group norm and its activation, :class:`InputNorm`, of u.

    Args:
        out: (B, H', W', C).
        dense: where u itself goes, rounded, if something else reads it: (B, H', W', C).
    """

    input: NormInput
    statistics: str
    weight: str
    bias: str
    out: str
    silu: bool
    dense: str | None = None

    backends: ClassVar[tuple[OpBackend, ...]] = ("triton",)

    @property
    def norm(self) -> InputNorm:
        """What it computes of u."""
        return InputNorm(self.statistics, self.weight, self.bias, self.silu)

    def reads(self) -> tuple[str, ...]:
        return (*self.input.names(), *self.norm.names())

    def writes(self) -> tuple[str, ...]:
        return (self.out, self.dense) if self.dense else (self.out,)

    def compute(self, tensors: Tensors) -> None:
        u = self.input.compute(tensors)
        tensors[self.out][:] = self.norm.compute(u, tensors)
        if self.dense:
            tensors[self.dense][:] = u

    def cost(self, extents: Extents) -> Cost:
        return Cost(0, extents.nbytes(*self.reads(), *self.writes()))

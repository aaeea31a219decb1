"""What an operation of a plan is: what it reads and writes, its numpy reference, what it costs, and who runs it."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from saishiki.runtime.plan.extents import Extents, Tensors
from saishiki.runtime.signature import Array

OpBackend = Literal["cudnn", "triton"]


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one launch, and the bytes that it moves, each tensor counted once."""

    flops: int
    bytes: int


class Op(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="op"):
    """One launch of a plan. Operands are names of buffers, interface tensors and weights, or strided parts of them."""

    backends: ClassVar[tuple[OpBackend, ...]]
    """Which of them can run it, the preferred one first."""

    def reads(self) -> tuple[str, ...]:
        """The tensors it reads, weights included."""
        raise NotImplementedError

    def writes(self) -> tuple[str, ...]:
        """The tensors it writes, every element of them."""
        raise NotImplementedError

    def compute(self, tensors: Tensors) -> None:
        """The reference: computes in fp32 and rounds once, when it writes."""
        raise NotImplementedError

    def cost(self, extents: Extents) -> Cost:
        """What a launch costs."""
        raise NotImplementedError


def exact(array: Array) -> Array:
    """An array in fp32, in which the references compute; one in fp64 stays so, for a truth that is more exact."""
    wide: Array = array if array.dtype == np.float64 else array.astype(np.float32)
    return wide


def silu(x: Array) -> Array:
    """``x * sigmoid(x)`` in the dtype of x; no overflow, wherever x lies."""
    result: Array = x * sigmoid(x)
    return result


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))`` in the dtype of x, by its hyperbolic tangent, which does not overflow."""
    result: Any = 0.5 * np.tanh(0.5 * x) + 0.5
    return result.astype(x.dtype)  # type: ignore[no-any-return]

"""What is computed number by number, where no other operation takes it along."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from saishiki.runtime.plan.extents import Extents, Strided, Tensors
from saishiki.runtime.plan.ops.op import Cost, Op, OpBackend, exact, sigmoid, silu
from saishiki.runtime.signature import Array

Function = Literal[
    "add",
    "sub",
    "mul",
    "div",
    "silu",
    "sigmoid",
    "gelu",
    "gated_gelu",
    "sin",
    "cos",
    "clip",
    "modulate",
    "select_above",
]


def gelu(x: Array) -> Array:
    """``x * Phi(x)``, with the error function."""
    result: Array = x * 0.5 * (1 + _erf(x / math.sqrt(2)))
    return result.astype(x.dtype)


# numpy has no erf, and the base install has no scipy.
_erf: Callable[[Any], Any] = np.vectorize(math.erf, otypes=[np.float64])

_FUNCTIONS: Mapping[Function, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "silu": silu,
    "sigmoid": sigmoid,
    "gelu": gelu,
    "gated_gelu": lambda x, gate: x * gelu(gate),
    "sin": np.sin,
    "cos": np.cos,
    "clip": np.clip,
    "select_above": lambda x, threshold, above, other: np.where(x > threshold, above, other),
    "modulate": lambda x, scale, shift: x * (1 + scale) + shift,
}


class Pointwise(Op, tag="pointwise", frozen=True):
    """``out = function(*inputs)`` in fp32, rounded once; inputs have out's shape, expanded by strides of 0."""

    function: Function
    inputs: tuple[Strided, ...]
    out: Strided

    backends: ClassVar[tuple[OpBackend, ...]] = ("triton",)

    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.buffer for part in self.inputs))

    def writes(self) -> tuple[str, ...]:
        return (self.out.buffer,)

    def compute(self, tensors: Tensors) -> None:
        tensors.view(self.out)[:] = _FUNCTIONS[self.function](*(exact(tensors.view(part)) for part in self.inputs))

    def cost(self, extents: Extents) -> Cost:
        return Cost(0, sum(map(extents.strided_nbytes, (*self.inputs, self.out))))

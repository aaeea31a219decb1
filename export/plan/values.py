"""What a tensor of the graph is while a plan is drafted: a view of a buffer, or something that is not computed yet.

What is not computed yet waits for whoever reads it: a norm for the SiLU behind it, a convolution for the residual that
is added to it, a concat for the norm that reads its parts as they are. Each is computed once, when something needs it
in a buffer; values are compared by identity.
"""

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from saishiki.export.plan.dims import Dim
from saishiki.export.plan.view import View
from saishiki.runtime.plan.ops import Function
from saishiki.runtime.signature import Array

Shape = tuple[Dim, ...]


@dataclass(frozen=True, eq=False)
class Lengths:
    """Whole numbers that say something about shapes.

    Args:
        shape: () or (N,).
    """

    dims: tuple[Dim, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant of the graph."""

    name: str
    tensor: ir.TensorProtocol

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape.numpy())

    def numbers(self) -> Array:
        """What is in it. The file is let go again: mapped, it would stay in memory with all that was read of it."""
        if not isinstance(self.tensor, ir.ExternalTensor):
            return self.tensor.numpy()
        numbers: Array = self.tensor.numpy().copy()
        self.tensor.release()
        return numbers


@dataclass(frozen=True, eq=False)
class Pending:
    """Something that is not computed yet.

    Args:
        name: of the graph's tensor.
        uses: how many nodes and outputs read it there.
    """

    name: str
    shape: Shape
    dtype: str
    uses: int


@dataclass(frozen=True, eq=False)
class Concat(Pending):
    """Parts behind one another along an axis."""

    parts: tuple["View | Pending", ...]
    axis: int


@dataclass(frozen=True, eq=False)
class Sum(Pending):
    """Two tensors of one shape, to be added."""

    left: "View | Pending"
    right: "View | Pending"


@dataclass(frozen=True, eq=False)
class Norm(Pending):
    """A group norm, and the SiLU behind it."""

    x: "View | Pending"
    groups: int
    epsilon: float
    weight: Weight
    bias: Weight
    silu: bool = False


@dataclass(frozen=True, eq=False)
class Contraction(Pending):
    """A convolution of images, or a product of rows with a matrix, and what is added to it.

    Args:
        kind: rows are (..., K) for ``matmul`` and (B, K, T) for ``matmul_of_columns``.
        vector: a part of an input that depends on the step, (B, K) at this offset.
    """

    kind: Literal["convolution", "matmul", "matmul_of_columns"]
    x: "View | Pending"
    weight: Weight
    transposed_weight: bool = False
    bias: Weight | None = None
    residual: "View | Pending | None" = None
    vector: tuple[str, int] | None = None
    stride: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Map(Pending):
    """A function of each number."""

    function: Function
    operands: tuple["View | Pending", ...]


@dataclass(frozen=True, eq=False)
class Comparison(Pending):
    """Whether ``x > threshold``; nothing but a selection can take it."""

    x: "View | Pending"
    threshold: "View | Pending"


@dataclass(frozen=True, eq=False)
class Cast(Pending):
    """Something in another dtype."""

    x: Pending


Value = View | Pending | Weight | Lengths
Tensor = View | Pending

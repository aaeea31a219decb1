"""A plan in the making: buffers, weights and operations so far, and what each tensor of the graph is."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from saishiki.export.plan.dims import ZERO, Dim
from saishiki.export.plan.values import Lengths, Pending, Tensor, Value, Weight
from saishiki.export.plan.view import View, dense
from saishiki.runtime.errors import SaishikiError
from saishiki.runtime.plan import Buffer, HoistedVector, WeightSpec
from saishiki.runtime.plan.ops import AnyOp
from saishiki.runtime.signature import Array, Signature

CHANNEL_UNIT = 8
"""Channels of pictures are padded to multiples of this: 16 bytes in fp16."""
SMALL = 64
"""Constants of so few whole numbers are taken for lengths."""


class LoweringError(SaishikiError, ValueError):
    """No plan can be made of a graph. The message names the node, what is wrong with it, and what to do."""


@dataclass(frozen=True)
class StoredWeight:
    """A weight of the plan: what it is, and how it comes from the graph's."""

    spec: WeightSpec
    read: Callable[[], Array]


@dataclass
class Draft:
    """The plan so far."""

    signature: Signature
    dtype: str
    values: dict[ir.Value, Value] = field(default_factory=dict)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    weights: dict[str, StoredWeight] = field(default_factory=dict)
    hoisted: dict[str, HoistedVector] = field(default_factory=dict)
    parts_of_hoisted: dict[str, list[tuple[int, Weight]]] = field(default_factory=dict)
    claimed: set[tuple[str, int]] = field(default_factory=set)
    ops: list[AnyOp] = field(default_factory=list)
    made: dict[Pending, View] = field(default_factory=dict)
    copies: dict[tuple[str, View], View] = field(default_factory=dict)
    orders: dict[tuple[View, float, bool], str] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)

    # Values of the graph

    def value(self, value: ir.Value | None) -> Value:
        """What a tensor of the graph is."""
        assert value is not None
        if value not in self.values:
            self.values[value] = _constant(value)
        return self.values[value]

    def tensor(self, value: ir.Value | None) -> Tensor:
        """A tensor of the graph that is computed, or a constant as a view of the weights."""
        found = self.value(value)
        if isinstance(found, Weight):
            return self.weight_view(found)
        if isinstance(found, Lengths):
            raise LoweringError(f"expected a tensor, got the lengths {[str(dim) for dim in found.dims]}")
        return found

    def weight(self, value: ir.Value | None) -> Weight:
        """A constant of the graph."""
        found = self.value(value)
        if not isinstance(found, Weight):
            name = value.name if value is not None else None
            raise LoweringError(f"expected {name} to be a constant, but it is computed")
        return found

    def lengths(self, value: ir.Value | None) -> Lengths:
        """Whole numbers that are known when the plan is made, but for the sizes in them."""
        found = self.value(value)
        if not isinstance(found, Lengths):
            name = value.name if value is not None else None
            raise LoweringError(f"expected {name} to be lengths that follow from the sizes, but it is computed")
        return found

    # Buffers and weights

    def emit(self, op: AnyOp) -> None:
        """Adds an operation."""
        self.ops.append(op)

    def new_buffer(self, name: str, dims: tuple[Dim, ...], dtype: str | None = None) -> str:
        """A buffer of dense dims; its name may get a number."""
        interface = {spec.name for spec in (*self.signature.inputs, *self.signature.outputs)}
        unique = _unique(name, self.buffers.keys() | interface)
        self.buffers[unique] = Buffer(dtype or self.dtype, tuple(map(str, dims)))
        return unique

    def redeclare(self, name: str, dims: tuple[Dim, ...]) -> None:
        """Gives a buffer other dims of the same length in the same order; whoever wrote it does not mind."""
        self.buffers[name] = Buffer(self.buffers[name].dtype, tuple(map(str, dims)))

    def new_rows(self, name: str, dims: tuple[Dim, ...], dtype: str | None = None) -> tuple[str, View]:
        """A buffer in the order of dims, and the view of it."""
        buffer = self.new_buffer(name, dims, dtype)
        return buffer, dense(buffer, dtype or self.dtype, dims)

    def new_images(self, name: str, shape: tuple[Dim, ...]) -> tuple[str, View]:
        """A buffer (B, H, W, C) for images (B, C, H, W), C padded, and the view of the images in it."""
        buffer = self.new_buffer(name, padded_images(shape))
        return buffer, images_view(buffer, self.dtype, shape)

    def store(self, name: str, array: Callable[[], Array], *, shape: tuple[int, ...], dtype: str | None = None) -> str:
        """A weight of the plan under its name; the same name must mean the same weight."""
        spec = WeightSpec(dtype or self.dtype, shape)
        if name in self.weights and self.weights[name].spec != spec:
            raise LoweringError(f"the weight {name} is wanted in two forms: {self.weights[name].spec} and {spec}")
        self.weights.setdefault(name, StoredWeight(spec, array))
        return name

    def weight_view(self, weight: Weight) -> View:
        """A constant as an operand of an operation."""
        name = self.store(f"{weight.name}.plain", lambda: self._cast(weight.numbers()), shape=weight.shape)
        if weight.tensor.size == 1:
            self.scalars[name] = float(weight.numbers().reshape(()))
        return dense(name, self.dtype, tuple(map(Dim.of, weight.shape)))

    def _cast(self, array: Array) -> Array:
        return array.astype(self.dtype)

    def claim(self, vector: tuple[str, int]) -> bool:
        """Whether a part of an input may be hoisted: one bias alone can be added to it."""
        free = vector not in self.claimed
        self.claimed.add(vector)
        return free

    def hoist(self, vector: tuple[str, int], bias: Weight) -> tuple[str, int]:
        """The hoisted vector of an input, and where in it the part begins that goes with a bias."""
        name, offset = vector
        hoisted = f"{name}.hoisted"
        self.hoisted.setdefault(hoisted, HoistedVector(name, f"{name}.bias"))
        self.parts_of_hoisted.setdefault(name, []).append((offset, bias))
        return hoisted, offset

    def store_hoisted_biases(self) -> None:
        """Stores what is added to each hoisted input: the biases of those that read it, each at its place."""
        specs = {spec.name: spec for spec in self.signature.inputs}
        for name, parts in self.parts_of_hoisted.items():
            width = int(specs[name].dims[-1])
            row = partial(_side_by_side, tuple(parts), width)
            self.store(f"{name}.bias", row, shape=(width,), dtype="float32")


def _side_by_side(parts: tuple[tuple[int, Weight], ...], width: int) -> Array:
    row: Array = np.zeros(width, np.float32)
    for offset, bias in parts:
        row[offset : offset + bias.shape[0]] = bias.numbers()
    return row


def padded_channels(channels: int) -> int:
    """Channels of a buffer for so many channels of images."""
    return -(-channels // CHANNEL_UNIT) * CHANNEL_UNIT


def padded_images(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """(B, H, W, padded C) of images (B, C, H, W)."""
    batch, channels, *pixels = shape
    return (batch, *pixels, Dim.of(padded_channels(channels.number)))


def images_view(buffer: str, dtype: str, shape: tuple[Dim, ...]) -> View:
    """Images (B, C, H, W) in a buffer (B, H, W, padded C)."""
    view = dense(buffer, dtype, padded_images(shape))
    last = len(shape) - 1
    return view.slice(last, ZERO, shape[1]).transpose((0, last, *range(1, last)))


def _constant(value: ir.Value) -> Value:
    tensor = value.const_value
    if tensor is None or value.name is None:
        raise LoweringError(f"{value.name} is neither computed nor constant")
    if tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32) and tensor.size <= SMALL:
        numbers = tensor.numpy()
        return Lengths(tuple(Dim.of(int(number)) for number in numbers.reshape(-1)), numbers.shape)
    return Weight(value.name, tensor)


def _unique(name: str, taken: Set[str]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}.{number}" in taken:
        number += 1
    return f"{name}.{number}"

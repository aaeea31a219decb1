"""The launch of the kernel of ``saishiki.kernels.pointwise``: which cubin, and how the operands lie.

Axes are taken in the order in which out lies, neighbours that lie alike in every operand become one, and of the two
kernels that there are for each number of operands, the one is chosen that takes eight numbers at a time where all lie
side by side.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saishiki.runtime.backends.launches.launch import Launch
from saishiki.runtime.errors import BackendError

FUNCTIONS: Mapping[int, tuple[str, ...]] = {
    1: ("copy", "silu", "sigmoid", "gelu", "sin", "cos"),
    2: ("add", "sub", "mul", "div", "gated_gelu"),
    3: ("clip", "modulate"),
    4: ("select_above",),
}
"""What is computed, by the number of operands, in the order of the kernel's argument ``function``: 0, 1, ..."""
AXES = 5
"""That the kernel takes, after neighbours have become one."""
UNIT = 8
NAMES = ("out", "a", "b", "c", "d")
"""Of the result and the operands, as the kernel's arguments are named."""
MAX_UNITS = 2**31 - 1

HALF, SINGLE, HALF_ONE, SINGLE_ONE, ABSENT = range(5)
"""Kinds of operands: fp16 or fp32; of either, one number for all that is taken at a time; none, read as zeros."""


@dataclass(frozen=True)
class Operand:
    """Where a tensor begins, its dtype, and how many numbers its axes are apart; 0 repeats."""

    address: int
    dtype: str
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Axis:
    """Its length, and its stride in out and in each operand."""

    length: int
    strides: tuple[int, ...]

    def holds(self, inner: "_Axis") -> bool:
        """Whether the two are one axis in truth."""
        pairs = zip(self.strides, inner.strides, strict=True)
        return all(outer == stride * inner.length for outer, stride in pairs)


def elementwise_launch(function: str, shape: Sequence[int], out: Operand, operands: Sequence[Operand]) -> Launch:
    """``out = function(*operands)``; a copy of no operand writes zeros.

    Raises ``BackendError`` for functions, dtypes and axes that no shipped kernel takes.
    """
    count = next((count for count, known in FUNCTIONS.items() if function in known), 0)
    if not count or len(operands) not in (count, 0 if function == "copy" else count):
        raise BackendError(f"no kernel computes {function} of {len(operands)} operands; use another backend")
    tensors = (out, *operands)
    if unknown := [tensor.dtype for tensor in tensors if tensor.dtype not in ("float16", "float32")]:
        raise BackendError(f"no kernel computes {function} in {unknown[0]}: expected float16 or float32")
    axes = _merged(shape, tensors)
    unit = UNIT if all(_is_by_unit(tensor, axes, place) for place, tensor in enumerate(tensors)) else 1
    *outer, inner = axes
    lengths = [*(axis.length for axis in outer), inner.length // unit]
    if math.prod(lengths) > MAX_UNITS:
        raise BackendError(f"no kernel computes {math.prod(shape)} numbers at once; use a smaller batch")
    arguments = {
        "function": FUNCTIONS[count].index(function),
        "units": math.prod(lengths),
        **{f"length_{axis}": length for axis, length in enumerate(lengths) if axis},
    }
    for place, name in enumerate(NAMES):
        absent = _arguments(name, out.address, ABSENT, (0,) * AXES)
        arguments |= _placed(name, tensors[place], axes, place, unit) if place < len(tensors) else absent
    return Launch(f"pointwise_{count}_by{unit}", arguments)


def _merged(shape: Sequence[int], tensors: Sequence[Operand]) -> tuple[_Axis, ...]:
    """As many axes as the kernel has, those that are not needed in front."""
    strides = zip(*(tensor.strides for tensor in tensors), strict=True)
    given = [_Axis(length, each) for length, each in zip(shape, strides, strict=True) if length != 1]
    axes: list[_Axis] = []
    for axis in sorted(given, key=lambda axis: -axis.strides[0]):
        if axes and axes[-1].holds(axis):
            axis = _Axis(axes.pop().length * axis.length, axis.strides)
        axes.append(axis)
    if len(axes) > AXES:
        raise BackendError(f"no kernel computes over {len(axes)} axes: expected at most {AXES}, got {tuple(shape)}")
    return (*[_Axis(1, (0,) * len(tensors))] * (AXES - len(axes)), *axes)


def _is_by_unit(tensor: Operand, axes: Sequence[_Axis], place: int) -> bool:
    """Whether eight neighbours at a time lie side by side at multiples of 16 bytes, or are one number."""
    *outer, innermost = (axis.strides[place] for axis in axes)
    whole = innermost == 1 and all(stride % UNIT == 0 for stride in outer)
    one = innermost == 0 and place > 0
    return axes[-1].length % UNIT == 0 and tensor.address % 16 == 0 and (whole or one)


def _placed(name: str, tensor: Operand, axes: Sequence[_Axis], place: int, unit: int) -> dict[str, int]:
    """The arguments of one tensor; strides of whole units are counted in units."""
    strides = [axis.strides[place] for axis in axes]
    is_one = unit > 1 and strides[-1] == 0
    if unit > 1 and not is_one:
        strides = [*(stride // unit for stride in strides[:-1]), 1]
    kind = (HALF if tensor.dtype == "float16" else SINGLE) + (HALF_ONE if is_one else 0)
    return _arguments(name, tensor.address, kind, strides)


def _arguments(name: str, address: int, kind: int, strides: Sequence[int]) -> dict[str, int]:
    places = {f"{name}_stride_{axis}": stride for axis, stride in enumerate(strides)}
    return {f"{name}_ptr": address, f"{name}_kind": kind, **places}

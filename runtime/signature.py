"""What goes into and comes out of a module, declared once.

A :class:`Signature` names every tensor of a module with its dtype and symbolic dims, such as ``("batch", "3",
"height/8", "width/8")``. ONNX names, dynamic axes, sample inputs, TensorRT profiles, buffer sizes and the bundle's
manifest are all derived from it; nothing else states a shape.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Sizes = Mapping[str, int]

_FACTOR = r"(?:[a-z_]+|[1-9]\d*)"
_DIM = re.compile(rf"{_FACTOR}(?:[*/]{_FACTOR})*")
_TERM = re.compile(rf"([*/]?)({_FACTOR})")


def resolve_dim(dim: str, sizes: Sizes) -> int:
    """The value of a symbolic dim: ``resolve_dim("height/8", {"height": 256}) == 32``.

    Raises ``KeyError`` for an unknown symbol and ``ValueError`` for what is no dim, or where a division leaves a
    remainder.
    """
    if _DIM.fullmatch(dim) is None:
        raise ValueError(f"expected a dim such as 3, height or height/8, got {dim!r}")
    value = _value(dim, sizes)
    if value.denominator != 1:
        raise ValueError(f"{dim} is not a whole number at {dict(sizes)}")
    return int(value)


def _value(dim: str, sizes: Sizes) -> Fraction:
    value = Fraction(1)
    for operator, term in _TERM.findall(dim):
        factor = int(term) if term.isdigit() else sizes[term]
        value = value / factor if operator == "/" else value * factor
    return value


def symbols_of(dim: str) -> tuple[str, ...]:
    """The symbols of a dim: ``symbols_of("height/8") == ("height",)``."""
    return tuple(term for _, term in _TERM.findall(dim) if not term.isdigit())


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype and symbolic dims of one tensor."""

    name: str
    dtype: str
    dims: tuple[str, ...]

    def __post_init__(self) -> None:
        np.dtype(self.dtype)  # raises TypeError for one that numpy does not know
        for dim in self.dims:
            if _DIM.fullmatch(dim) is None:
                raise ValueError(f"{self.name}: expected a dim such as 3, height or height/8, got {dim!r}")

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The concrete shape at ``sizes``."""
        return tuple(resolve_dim(dim, sizes) for dim in self.dims)

    def nbytes(self, sizes: Sizes) -> int:
        """Bytes of the tensor at ``sizes``."""
        return math.prod(self.shape(sizes)) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} ({', '.join(self.dims)})"


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a module, and the multiple every symbolic size must have."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    multiples: Mapping[str, int]

    @property
    def symbols(self) -> tuple[str, ...]:
        """All symbols, in order of first appearance."""
        found = (symbol for spec in self.inputs + self.outputs for dim in spec.dims for symbol in symbols_of(dim))
        return tuple(dict.fromkeys(found))

    def at(self, sizes: Sizes) -> "Signature":
        """The same tensors at one size, with numbers for dims; tracing such a signature takes a third of the time."""

        def fixed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(replace(spec, dims=tuple(map(str, spec.shape(sizes)))) for spec in specs)

        return Signature(fixed(self.inputs), fixed(self.outputs), {})

    def sizes_from_arrays(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        """The value of every symbol, read off the inputs; raises ``ValueError`` naming the input that does not fit."""
        expected = {spec.name for spec in self.inputs}
        if arrays.keys() != expected:
            raise ValueError(f"expected the inputs {sorted(expected)}, got {sorted(arrays)}")
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            _read_sizes(spec, arrays[spec.name], sizes)
        if unknown := set(self.symbols) - sizes.keys():
            raise ValueError(f"no input tells the sizes {sorted(unknown)}")
        for spec in self.inputs:
            if arrays[spec.name].shape != spec.shape(sizes):
                raise ValueError(f"expected {spec}, got {arrays[spec.name].shape} with {sizes}")
        self.check_sizes(sizes)
        return sizes

    def check_sizes(self, sizes: Sizes) -> None:
        """Raises ``ValueError`` where a size is not positive or not a multiple of what the module needs."""
        for symbol in self.symbols:
            multiple = self.multiples.get(symbol, 1)
            if sizes[symbol] < 1 or sizes[symbol] % multiple:
                raise ValueError(f"{symbol} must be a positive multiple of {multiple}, got {sizes[symbol]}")


def multiples_of(signatures: Iterable[Signature]) -> dict[str, int]:
    """What every symbolic size must be a multiple of so that it fits all of several modules."""
    multiples: dict[str, int] = {}
    for signature in signatures:
        for symbol, multiple in signature.multiples.items():
            multiples[symbol] = math.lcm(multiples.get(symbol, 1), multiple)
    return multiples


def _read_sizes(spec: TensorSpec, array: Array, sizes: dict[str, int]) -> None:
    if array.dtype != np.dtype(spec.dtype) or array.ndim != len(spec.dims):
        raise ValueError(f"expected {spec}, got {array.dtype} {array.shape}")
    for dim, length in zip(spec.dims, array.shape, strict=True):
        symbols = symbols_of(dim)
        if len(symbols) == 1:
            size = length / _value(dim, {symbols[0]: 1})
            sizes.setdefault(symbols[0], int(size))  # rounded down, a size that does not fit is told by the shapes


@dataclass(frozen=True)
class Profile:
    """A range of sizes that an engine is built for: the smallest, the one it is tuned for, and the largest."""

    min: Mapping[str, int]
    opt: Mapping[str, int]
    max: Mapping[str, int]

    def __post_init__(self) -> None:
        same_symbols = self.min.keys() == self.opt.keys() == self.max.keys()
        if not same_symbols or not all(1 <= self.min[s] <= self.opt[s] <= self.max[s] for s in self.opt):
            raise ValueError(f"a profile must ascend from min over opt to max, got {self.min}, {self.opt}, {self.max}")

    def holds(self, sizes: Sizes) -> bool:
        """Whether every one of ``sizes`` that the profile limits lies within it."""
        return all(self.min[s] <= sizes[s] <= self.max[s] for s in self.min.keys() & sizes.keys())

    def restricted_to(self, symbols: tuple[str, ...]) -> "Profile":
        """The same profile over some of its symbols."""

        def keep(sizes: Sizes) -> dict[str, int]:
            return {symbol: sizes[symbol] for symbol in symbols}

        return Profile(keep(self.min), keep(self.opt), keep(self.max))

    def corners(self) -> tuple[Sizes, ...]:
        """The distinct sizes among min, opt and max."""
        unique = {tuple(sorted(point.items())): point for point in (self.min, self.opt, self.max)}
        return tuple(unique.values())

    def __str__(self) -> str:
        return ", ".join(f"{symbol} {_range(self, symbol)}" for symbol in self.opt)


def _range(profile: Profile, symbol: str) -> str:
    low, best, high = profile.min[symbol], profile.opt[symbol], profile.max[symbol]
    return str(best) if low == high else f"{low}..{best}..{high}"


def profiles_for(signature: Signature, profiles: tuple[Profile, ...]) -> tuple[Profile, ...]:
    """The distinct profiles that concern a module, over its own symbols."""
    restricted = [profile.restricted_to(signature.symbols) for profile in profiles]
    return tuple(profile for i, profile in enumerate(restricted) if profile not in restricted[:i])

"""How large the tensors of a plan are at given sizes, and where a strided operand lies in one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.lib.stride_tricks import as_strided

from saishiki.runtime.signature import Array, Sizes, resolve_dim


class Strided(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A part of a buffer, or a buffer read in another order; numbers are symbolic dims, strides are in elements.

    A stride of ``0`` repeats: an expanded vector, or every pixel twice for nearest-neighbour upsampling.
    """

    buffer: str
    shape: tuple[str, ...]
    strides: tuple[str, ...]
    offset: str = "0"

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.strides):
            raise ValueError(f"{self.buffer}: expected a stride for each of {self.shape}, got {self.strides}")


def resolve(dim: str, sizes: Sizes) -> int:
    """The value of a symbolic dim, offset or stride: ``0``, a dim as of a signature, or a sum such as ``-1 + width/8``.

    Raises ``KeyError`` and ``ValueError`` as :func:`~saishiki.runtime.signature.resolve_dim` does.
    """
    return sum(_term(term, sizes) for term in dim.split(" + "))


def _term(term: str, sizes: Sizes) -> int:
    if term == "0":
        return 0
    return -resolve_dim(term[1:], sizes) if term.startswith("-") else resolve_dim(term, sizes)


@dataclass(frozen=True)
class Extent:
    """The shape of a tensor at given sizes, and its numpy dtype."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Its elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Extents:
    """The tensors of a plan at given sizes."""

    sizes: Sizes
    of: Mapping[str, Extent]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.of[name].shape

    def nbytes(self, *names: str) -> int:
        """The bytes of several tensors."""
        return sum(self.of[name].nbytes for name in names)

    def strided_shape(self, part: Strided) -> tuple[int, ...]:
        """The shape of a strided operand."""
        return tuple(resolve(dim, self.sizes) for dim in part.shape)

    def strided_nbytes(self, part: Strided) -> int:
        """The bytes a strided operand reads or writes, what it repeats counted once."""
        lengths = zip(part.shape, part.strides, strict=True)
        distinct = math.prod(resolve(dim, self.sizes) for dim, stride in lengths if stride != "0")
        return distinct * np.dtype(self.of[part.buffer].dtype).itemsize


@dataclass(frozen=True)
class Tensors:
    """The arrays of a plan, and strided views of them."""

    sizes: Sizes
    arrays: Mapping[str, Array]

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def view(self, part: Strided) -> Array:
        """A strided operand, not copied. Raises ``ValueError`` where it does not lie inside its buffer."""
        flat = self.arrays[part.buffer].reshape(-1)
        shape = tuple(resolve(dim, self.sizes) for dim in part.shape)
        strides = tuple(resolve(dim, self.sizes) for dim in part.strides)
        offset = resolve(part.offset, self.sizes)
        if offset < 0:
            raise ValueError(f"{part} begins at element {offset}, before its buffer, at {dict(self.sizes)}")
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if last >= flat.size:
            raise ValueError(f"{part} ends at element {last} of {flat.size}, at {dict(self.sizes)}")
        return as_strided(flat[offset:], shape, tuple(stride * flat.itemsize for stride in strides))

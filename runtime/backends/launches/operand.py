"""Where the operands of a launch lie, and whether a kernel takes their dtypes and strides."""

from collections.abc import Collection, Iterable

import numpy as np

from saishiki.runtime.backends.launches.launch import Address
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.extents import Extents, Strided, resolve
from saishiki.runtime.plan.ops import Op


def address_of(part: Strided, extents: Extents, address: Address) -> int:
    """Where a strided operand begins."""
    itemsize = np.dtype(extents.of[part.buffer].dtype).itemsize
    return address(part.buffer) + resolve(part.offset, extents.sizes) * itemsize


def require_dtypes(op: Op, extents: Extents, names: Iterable[str], dtypes: Collection[str]) -> None:
    """Raises ``BackendError`` for a tensor of another dtype than these."""
    for name in names:
        if (found := extents.of[name].dtype) not in dtypes:
            raise BackendError(
                f"no kernel of {type(op).__name__} takes {name} in {found}: expected {' or '.join(dtypes)}; use "
                "another backend"
            )


def units_of(part: Strided, extents: Extents, unit: int) -> tuple[int, ...]:
    """How far apart the numbers of every axis but the innermost are, in units of so many numbers.

    Raises ``BackendError`` where the innermost are not side by side, or the others not a whole number of units apart.
    """
    *strides, innermost = (resolve(stride, extents.sizes) for stride in part.strides)
    if innermost != 1 or any(stride % unit for stride in strides):
        raise BackendError(
            f"no kernel reads {part.buffer} at strides {(*strides, innermost)}: expected numbers side by side and "
            f"strides in multiples of {unit}; use another backend"
        )
    return tuple(stride // unit for stride in strides)

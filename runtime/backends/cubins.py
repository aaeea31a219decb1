"""Kernels compiled ahead of time by ``python -m saishiki.kernels.build``: which runs here, and what a launch takes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from saishiki.runtime.errors import BackendError

CUBINS = Path(__file__).parent.parent / "cubins"
INDEX_NAME = "index.json"

_VECTOR_BYTES = 16
_MAX_GRID = (2**31 - 1, 65535, 65535)
# cuda-core passes a Python int as 8 bytes and a float as a double, whatever the kernel expects.
_SCALARS: Mapping[str, Callable[[Any], Any]] = {"i32": np.int32, "i64": np.int64, "fp32": np.float32}


@dataclass(frozen=True)
class CubinEntry:
    """A kernel that was compiled ahead of time, as ``index.json`` describes it.

    Args:
        target: the compute capability it was compiled for, such as ``sm90``.
        arch: the same as ptxas names it; with a trailing ``a`` it runs on this compute capability and no other.
        source_sha256: hash of the kernel's source text, to find stale cubins.
        args: name and Triton type of everything a launch passes, Triton's hidden pointers (``null``) included.
        aligned: arguments that must be multiples of 16.
        grid: per axis, the arguments whose product is divided, and by what, rounded up.
    """

    name: str
    target: str
    arch: str
    file: str
    sha256: str
    source_sha256: str
    entry: str
    args: tuple[tuple[str, str], ...]
    constexprs: Mapping[str, bool | int]
    aligned: tuple[str, ...]
    grid: tuple[tuple[tuple[str, ...], int], ...]
    threads: int
    shared_bytes: int
    registers: int
    spill_bytes: int


@dataclass(frozen=True)
class CubinIndex:
    """All kernels of a folder, and what compiled them with which options."""

    triton: str
    options: Mapping[str, bool | int]
    cubins: tuple[CubinEntry, ...]


def read_cubin_index(folder: Path = CUBINS) -> CubinIndex:
    """The index of a folder of cubins."""
    return msgspec.json.decode((folder / INDEX_NAME).read_bytes(), type=CubinIndex)


def find_cubin(index: CubinIndex, name: str, target: str) -> CubinEntry:
    """The cubin of a kernel that runs on a target such as ``sm89``; raises ``BackendError`` where there is none.

    A cubin also runs on later minor versions of its compute capability, unless its arch says otherwise.
    """
    own = [cubin for cubin in index.cubins if cubin.name == name]
    fitting = [cubin for cubin in own if _runs_on(cubin, target)]
    if not fitting:
        compiled = ", ".join(cubin.target for cubin in own) or "nothing"
        raise BackendError(f"the kernel {name} is compiled for {compiled}, not for this GPU's {target}")
    return max(fitting, key=lambda cubin: _sm(cubin.target))


def _runs_on(cubin: CubinEntry, target: str) -> bool:
    (major, minor), (own_major, own_minor) = divmod(_sm(target), 10), divmod(_sm(cubin.target), 10)
    if cubin.arch.endswith("a"):
        return cubin.target == target
    return own_major == major and own_minor <= minor


def _sm(target: str) -> int:
    return int(target.removeprefix("sm"))


def packed_arguments(entry: CubinEntry, arguments: Mapping[str, int | float]) -> list[Any]:
    """What a launch passes, in the kernel's order: addresses and null pointers as ints, scalars in numpy's types.

    Raises ``TypeError`` where an argument is missing or unknown, ``ValueError`` where an aligned one is not.
    """
    expected = [name for name, kind in entry.args if kind != "null"]
    if set(expected) != arguments.keys():
        raise TypeError(f"{entry.name} takes {expected}, got {sorted(arguments)}")
    for name in entry.aligned:
        if arguments[name] % _VECTOR_BYTES:
            raise ValueError(f"{entry.name}: {name} must be a multiple of {_VECTOR_BYTES}, got {arguments[name]}")
    return [0 if kind == "null" else _packed(kind, arguments[name]) for name, kind in entry.args]


def grid_of(entry: CubinEntry, arguments: Mapping[str, int | float]) -> tuple[int, ...]:
    """The blocks of a launch along each axis, at least one; raises ``ValueError`` where CUDA allows fewer."""
    grid = tuple(max(1, -(-math.prod(int(arguments[name]) for name in names) // each)) for names, each in entry.grid)
    for blocks, most, (names, each) in zip(grid, _MAX_GRID, entry.grid, strict=False):
        if blocks > most:
            raise ValueError(
                f"{entry.name}: {' * '.join(names)} / {each} is {blocks} blocks, more than {most}; use a smaller batch"
            )
    return grid


def _packed(kind: str, value: int | float) -> Any:
    return int(value) if kind.startswith("*") else _SCALARS[kind](value)

"""What the device loop needs of a GPU and of an engine on it, and how tables lie in device memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from saishiki.runtime.signature import Array

ROW_BYTES = 256
"""Rows of a table begin at multiples of this: TensorRT asks for it, and kernels read 16 bytes at a time."""


@dataclass(frozen=True)
class Memory:
    """Device memory, 256-byte aligned. It is freed when nothing refers to it any more."""

    address: int
    nbytes: int
    owner: Any


class Completion(Protocol):
    """A point in the device's work."""

    def wait(self) -> None:
        """Returns once the device has come this far."""
        ...

    def ms_since(self, earlier: Self) -> float:
        """Device time between two points, both reached, in milliseconds."""
        ...


class Device(Protocol):
    """A GPU with one stream: everything is enqueued on it in order."""

    def allocate(self, nbytes: int) -> Memory:
        """New memory, its content undefined."""
        ...

    def free_bytes(self) -> int:
        """How much more it can allocate."""
        ...

    def upload(self, memory: Memory, array: Array) -> None:
        """Enqueues a copy from host memory to the start of ``memory``."""
        ...

    def download(self, memory: Memory, array: Array) -> None:
        """Fills a contiguous array from the start of ``memory``, once everything enqueued before is done."""
        ...

    def launch(self, name: str, **arguments: int | float) -> None:
        """Enqueues a kernel; how many blocks it has follows from its arguments."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records what ``work`` enqueues without running it; calling the result enqueues all of it at once."""
        ...

    def mark(self) -> Completion:
        """Marks the point that the stream has been filled to."""
        ...

    def synchronize(self) -> None:
        """Returns once everything enqueued is done."""
        ...


@dataclass(frozen=True)
class InputUse:
    """What runs promise about a module's inputs, by name, so that an engine may make use of it.

    Args:
        changing: those that are new in every run; what depends on the others alone is computed once.
        alike: those whose rows are the same for all pictures of a batch, in every run.
    """

    changing: frozenset[str] = frozenset()
    alike: frozenset[str] = frozenset()


class Engine(Protocol):
    """A module ready to run at fixed sizes, with memory of its own for every input and output.

    The memory of each tensor is as long as :func:`padded_bytes` says, of what :meth:`rows` makes of it.
    """

    @property
    def memory(self) -> Mapping[str, Memory]:
        """Where every input and output lies."""
        ...

    def rows(self, name: str, rows: Array) -> Array:
        """What is put into the memory of an input instead of its values: (N, ...) of N of them."""
        ...

    def prepare(self) -> None:
        """Computes what depends on inputs that stay the same between runs; to be called when they are new."""
        ...

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        """Runs once, with some tensors elsewhere than in :attr:`memory`."""
        ...

    def is_capturable(self) -> bool:
        """Whether :meth:`enqueue` can be recorded into a CUDA graph."""
        ...


def padded_bytes(nbytes: int) -> int:
    """The bytes of a row of ``nbytes``."""
    return -(-nbytes // ROW_BYTES) * ROW_BYTES


@dataclass(frozen=True)
class Table:
    """Rows on the device, one per step."""

    memory: Memory
    row_bytes: int

    def address(self, k: int) -> int:
        """Where row k begins."""
        return self.memory.address + k * self.row_bytes


def table_rows(array: Array) -> Array:
    """(S, row) uint8: each array[k] flat, and zeros up to the next multiple of :data:`ROW_BYTES`."""
    rows = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
    missing = padded_bytes(rows.shape[1]) - rows.shape[1]
    return np.pad(rows, ((0, 0), (0, missing))) if missing else rows

"""A device whose kernels are those of the cubins, run by Triton's interpreter on memory of the host.

What a GPU would be given is checked on the way: names, types and alignment of arguments against the index of cubins,
the grid, shared memory, and that every address lies in memory that was allocated. Memory is full of NaN at first, and
has more of it behind its end.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from saishiki.kernels.build import VARIANTS
from saishiki.runtime.backends.cubins import CubinEntry, find_cubin, grid_of, packed_arguments, read_cubin_index
from saishiki.runtime.backends.device import ROW_BYTES, Memory
from saishiki.runtime.signature import Array

GUARD_BYTES = 1024
SHARED_BYTES = {"sm80": 163 * 1024, "sm86": 99 * 1024, "sm89": 99 * 1024, "sm90": 227 * 1024, "sm120": 99 * 1024}
_DTYPES = {"*fp16": torch.float16, "*fp32": torch.float32, "*i32": torch.int32, "*i64": torch.int64}


@dataclass
class InterpretedDevice:
    """Everything runs when it is enqueued, or is recorded.

    Args:
        runs: False: launches are checked and noted, and nothing is computed.
        free: bytes that it says it has left.
    """

    target: str = "sm89"
    multiprocessors: int = 2
    runs: bool = True
    free: int = 2**34
    launched: list[str] = field(default_factory=list)
    allocated: list[Memory] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None
    graphs: int = 0
    replays: int = 0

    def make_current(self) -> None:
        pass

    def allocate(self, nbytes: int) -> Memory:
        assert self.recording is None, "memory is allocated before a recording"
        storage = np.full(nbytes + GUARD_BYTES + ROW_BYTES, 0xFF, np.uint8)
        begin = -storage.ctypes.data % ROW_BYTES
        memory = Memory(storage.ctypes.data + begin, nbytes, storage[begin:])
        self.allocated.append(memory)
        self.free -= nbytes
        return memory

    def free_bytes(self) -> int:
        return self.free

    def upload(self, memory: Memory, array: Array) -> None:
        assert self.recording is None
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        assert len(content) <= memory.nbytes
        memory.owner[: len(content)] = content

    def download(self, memory: Memory, array: Array) -> None:
        array.reshape(-1).view(np.uint8)[:] = memory.owner[: array.nbytes]

    def launch(self, name: str, **arguments: int | float) -> None:
        entry = find_cubin(read_cubin_index(), name, self.target)
        packed_arguments(entry, arguments)
        assert entry.shared_bytes <= SHARED_BYTES[self.target]
        self._check_addresses(entry, arguments)
        grid = grid_of(entry, arguments)

        def run() -> None:
            self.launched.append(name)
            if self.runs:
                self._interpret(name, grid, arguments)

        run() if self.recording is None else self.recording.append(run)

    def _check_addresses(self, entry: CubinEntry, arguments: dict[str, Any]) -> None:
        for name, kind in entry.args:
            if kind.startswith("*") and arguments[name]:
                inside = [m for m in self.allocated if m.address <= arguments[name] < m.address + max(1, m.nbytes)]
                assert inside, f"{entry.name}: {name} lies in no memory"

    def _interpret(self, name: str, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        variant = VARIANTS[name]
        values = {
            key: _tensor_at(int(value), variant.signature[key]) if variant.signature[key].startswith("*") else value
            for key, value in arguments.items()
        }
        variant.kernel[grid](**values, **variant.constexprs)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recording = recording = []
        try:
            work()
        finally:
            self.recording = None
        self.graphs += 1

        def replay() -> None:
            self.replays += 1
            for run in recording:
                run()

        return replay

    def guards_are_whole(self) -> bool:
        """Whether nothing was written behind the end of any memory."""
        return all(
            (memory.owner[memory.nbytes : memory.nbytes + GUARD_BYTES] == 0xFF).all() for memory in self.allocated
        )

    def mark(self) -> "Done":
        return Done(len(self.launched))

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        self.allocated.clear()


@dataclass(frozen=True)
class Done:
    """A point in the work, which has always been reached; a launch takes a millisecond."""

    launches: int

    def wait(self) -> None:
        pass

    def ms_since(self, earlier: "Done") -> float:
        return float(self.launches - earlier.launches)


def _tensor_at(address: int, kind: str) -> Any:
    """A tensor that begins at an address of the host; kernels take no more of it than where it begins."""
    dtype = _DTYPES[kind]
    if not address:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer((ctypes.c_uint8 * dtype.itemsize).from_address(address), dtype=dtype)

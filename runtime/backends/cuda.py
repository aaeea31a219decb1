"""The GPU without torch: memory, copies, events, graphs and ready-made kernels, as thin layers over cuda-core.

One device, one stream; everything is enqueued on it in order. Not thread-safe: callers hold a lock and call
:meth:`CudaDevice.make_current` first, because CUDA's current context belongs to a thread.
"""

import contextlib
import ctypes
import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from saishiki.runtime.backends.cubins import (
    CUBINS,
    CubinEntry,
    find_cubin,
    grid_of,
    packed_arguments,
    read_cubin_index,
)
from saishiki.runtime.backends.device import Memory
from saishiki.runtime.errors import BackendError
from saishiki.runtime.garbage_collection import no_garbage_collection
from saishiki.runtime.signature import Array

INSTALL = "pip install 'cuda-core>=1.0' 'cuda-bindings>=13,<14'"

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_SHARED_BYTES = 48 * 1024  # a kernel that wants more must be allowed to have it
# Two captures at once would be legal, but libraries that set something up lazily may not be ready for it.
_CAPTURING = threading.Lock()


@cache
def driver_problem() -> str | None:
    """What is wrong with the NVIDIA driver, or None. Asks the driver itself: without one, cuda-core can hang."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1) found"
    error = driver.cuInit(0)
    if error == _NO_DEVICE:
        return "the NVIDIA driver finds no GPU"
    return f"the NVIDIA driver does not start (cuInit returns error {error})" if error else None


def device_count() -> int:
    """The number of GPUs; call it only where there is no :func:`driver_problem`."""
    count = ctypes.c_int()
    error = ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count))
    if error:
        raise BackendError(f"the NVIDIA driver does not count its GPUs (cuDeviceGetCount returns error {error})")
    return count.value


def import_cuda_core() -> Any:
    """The module ``cuda.core``; raises ``BackendError`` saying what to install."""
    if problem := driver_problem():
        raise BackendError(problem)
    try:
        core = importlib.import_module("cuda.core")
    except ImportError as error:
        raise BackendError(f"cuda-core is not installed or not complete ({error}); run: {INSTALL}") from error
    if not hasattr(core, "launch"):
        raise BackendError(f"cuda-core {core.__version__} is too old, expected 1.0 or newer; run: {INSTALL}")
    return core


@dataclass(frozen=True)
class Mark:
    """A point in the stream."""

    event: Any

    def wait(self) -> None:
        """Returns once the device has come this far."""
        self.event.sync()

    def ms_since(self, earlier: "Mark") -> float:
        """Device time between two marks, both reached, in milliseconds."""
        return float(self.event - earlier.event)


class CudaDevice:
    """A GPU, and a stream on it. Raises ``BackendError`` where there is none of that number."""

    def __init__(self, ordinal: int) -> None:
        self._core = import_cuda_core()
        count = device_count()
        if not 0 <= ordinal < count:
            raise BackendError(f"no GPU {ordinal}: this machine has {count}, numbered from 0")
        self.ordinal = ordinal
        self.make_current()
        self._stream = self._device.create_stream()
        major, minor = self._device.compute_capability
        self.name = str(self._device.name)
        """The GPU's name, such as ``NVIDIA H200``."""
        self.target = f"sm{major}{minor}"
        """Its compute capability, such as ``sm90``."""
        self.multiprocessors = int(self._device.properties.multiprocessor_count)
        """How many of them it has."""
        self._kernels: dict[str, tuple[CubinEntry, Any]] = {}
        # Sources of copies that may still be under way.
        self._in_flight: list[Array] = []

    @property
    def _device(self) -> Any:
        return self._core.Device(self.ordinal)  # one object per thread

    @property
    def stream(self) -> int:
        """The stream's handle, for libraries that take a number."""
        return int(self._stream.handle)

    def make_current(self) -> None:
        """Makes this GPU the calling thread's own; needed once per thread before anything else."""
        self._device.set_current()

    def allocate(self, nbytes: int) -> Memory:
        """New memory, its content undefined; raises ``BackendError`` where the GPU has too little."""
        try:
            buffer = self._device.allocate(max(nbytes, 1), stream=self._stream)
        except Exception as error:  # cuda-core's own class, derived from Exception alone
            raise BackendError(f"GPU {self.ordinal} has no room for {nbytes} more bytes: {error}") from error
        return Memory(int(buffer.handle), nbytes, buffer)

    def free_bytes(self) -> int:
        """How much more memory the GPU has."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        error = ctypes.CDLL("libcuda.so.1").cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        if error:
            raise BackendError(f"GPU {self.ordinal} does not tell its free memory (cuMemGetInfo returns error {error})")
        return free.value

    def upload(self, memory: Memory, array: Array) -> None:
        """Enqueues a copy from host memory to the start of ``memory``."""
        host = np.ascontiguousarray(array)
        self._copy(memory.address, host.ctypes.data, _checked_nbytes(host, memory))
        self._in_flight.append(host)

    def download(self, memory: Memory, array: Array) -> None:
        """Fills a contiguous array from the start of ``memory``, once everything enqueued before is done."""
        if not array.flags.c_contiguous:
            raise ValueError("expected a contiguous array to download into")
        self._copy(array.ctypes.data, memory.address, _checked_nbytes(array, memory))
        self.synchronize()

    def _copy(self, destination: int, source: int, nbytes: int) -> None:
        if nbytes:
            view = self._core.Buffer.from_handle
            view(destination, nbytes).copy_from(view(source, nbytes), stream=self._stream)

    def launch(self, name: str, **arguments: int | float) -> None:
        """Enqueues a kernel of ``runtime/cubins``; its grid follows from the arguments."""
        if name not in self._kernels:
            self._kernels[name] = self._load_kernel(name)
        entry, kernel = self._kernels[name]
        packed = packed_arguments(entry, arguments)
        grid = grid_of(entry, arguments)
        config = self._core.LaunchConfig(grid=grid, block=entry.threads, shmem_size=entry.shared_bytes)
        self._core.launch(self._stream, config, kernel, *packed)

    def _load_kernel(self, name: str) -> tuple[CubinEntry, Any]:
        entry = find_cubin(read_cubin_index(), name, self.target)
        code = self._core.ObjectCode.from_cubin((CUBINS / entry.file).read_bytes(), name=entry.name)
        kernel = code.get_kernel(entry.entry)
        if entry.shared_bytes > _SHARED_BYTES:
            _allow_shared_bytes(kernel, entry.shared_bytes, self.ordinal)
        return entry, kernel

    def mark(self) -> Mark:
        """Marks the point that the stream has been filled to."""
        return Mark(self._stream.record(options=self._core.EventOptions(timing_enabled=True)))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records what ``work`` enqueues without running it; calling the result enqueues all of it at once.

        Other threads may use the GPU meanwhile. ``work`` must not allocate, copy from the host or wait. The memory that
        it uses must outlive the result.
        """
        # Freeing device memory on a stream that is being recorded breaks the recording.
        with _CAPTURING, no_garbage_collection():
            builder = self._stream.create_graph_builder().begin_building("thread_local")
            try:
                work()
                graph = builder.end_building().complete()
            except BaseException:
                # The recording is broken already, and its first error is the one to report.
                with contextlib.suppress(Exception):
                    builder.close()
                raise
            builder.close()
        return lambda: graph.launch(self._stream)

    def synchronize(self) -> None:
        """Returns once everything enqueued is done."""
        self._stream.sync()
        self._in_flight.clear()

    def close(self) -> None:
        """Waits for the stream and destroys it."""
        self.synchronize()
        self._kernels.clear()
        self._stream.close()


def _allow_shared_bytes(kernel: Any, nbytes: int, ordinal: int) -> None:
    """Lets a kernel have so much shared memory, for which cuda-core has no setter."""
    driver = importlib.import_module("cuda.bindings.driver")
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (error,) = driver.cuKernelSetAttribute(attribute, nbytes, kernel.handle, ordinal)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise BackendError(f"GPU {ordinal} gives a kernel no {nbytes} bytes of shared memory: {error}")


def _checked_nbytes(array: Array, memory: Memory) -> int:
    if array.nbytes > memory.nbytes:
        raise ValueError(f"an array of {array.nbytes} bytes does not fit into {memory.nbytes}")
    return int(array.nbytes)

"""What backends on a GPU have in common: modules with memory for inputs and outputs, a lock, and the loop."""

import contextlib
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np

from saishiki.runtime.backends.device import Engine, InputUse
from saishiki.runtime.backends.device_loop import DeviceLoop, runs_on_device
from saishiki.runtime.backends.host_loop import run_loop_on_host, run_loop_on_host_timed
from saishiki.runtime.backends.protocol import DenoisingLoop, Module, OnStep, TimedLoop
from saishiki.runtime.errors import BackendError
from saishiki.runtime.signature import Array, Signature, Sizes

MAX_EXECUTIONS = 8


class DeviceModule(ABC):
    """A module on a device. Its backend's lock is held while it runs.

    Args:
        backend: whose device it is on.
    """

    def __init__(self, backend: "DeviceBackend", signature: Signature) -> None:
        self.signature = signature
        self._backend = backend
        self._executions: OrderedDict[tuple[tuple[tuple[str, int], ...], InputUse], Engine] = OrderedDict()
        self.loop = DeviceLoop(backend.device, signature, self.execution_at)

    @abstractmethod
    def new_execution(self, sizes: Sizes, use: InputUse) -> Engine:
        """The engine where it is not ready yet; it has run once, and nothing is left to be set up."""

    def depends_on_use(self) -> bool:
        """Whether an engine makes use of what runs promise about their inputs: there is one for each promise then."""
        return False

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """The outputs by name; raises ``ValueError`` for inputs that do not fit the signature or any profile."""
        sizes = self.signature.sizes_from_arrays(inputs)
        with self._backend.working():
            execution = self._uploaded(inputs, sizes)
            execution.enqueue({})
            return {spec.name: self._download(execution, spec.name, sizes) for spec in self.signature.outputs}

    def device_ms(self, **inputs: Array) -> float:
        """Runs once: device time in milliseconds, without copies. Raises as a call does."""
        sizes = self.signature.sizes_from_arrays(inputs)
        with self._backend.working():
            execution, device = self._uploaded(inputs, sizes), self._backend.device
            begin = device.mark()
            execution.enqueue({})
            end = device.mark()
            device.synchronize()
            return float(end.ms_since(begin))

    def _uploaded(self, inputs: dict[str, Array], sizes: Sizes) -> Engine:
        # Nobody promises anything about the inputs of a call.
        execution = self.execution_at(sizes, InputUse(changing=frozenset(inputs)))
        for name, array in inputs.items():
            self._backend.device.upload(execution.memory[name], execution.rows(name, array[None])[0])
        execution.prepare()
        return execution

    def _download(self, execution: Engine, name: str, sizes: Sizes) -> Array:
        (spec,) = (spec for spec in self.signature.outputs if spec.name == name)
        array: Array = np.empty(spec.shape(sizes), spec.dtype)
        self._backend.device.download(execution.memory[name], array)
        return array

    def execution_at(self, sizes: Sizes, use: InputUse) -> Engine:
        """The engine at these sizes, for runs that use their inputs so; it has run once."""
        key = tuple(sorted(sizes.items())), use if self.depends_on_use() else InputUse()
        if key not in self._executions:
            self._executions[key] = self.new_execution(sizes, use)
        self._executions.move_to_end(key)
        while len(self._executions) > MAX_EXECUTIONS:
            self._executions.popitem(last=False)
        return self._executions[key]

    def close(self) -> None:
        """Frees graphs and memory, in that order."""
        self.loop.close()
        self._executions.clear()


class DeviceBackend:
    """Modules on one GPU. Thread-safe: one run at a time.

    Args:
        device: a :class:`saishiki.runtime.backends.cuda.CudaDevice`, or what behaves like one.
    """

    def __init__(self, name: str, device: Any) -> None:
        self.name, self.device = name, device
        self._lock = threading.Lock()
        self._modules: list[DeviceModule] = []
        self._closed = False

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """The GPU for one thread; everything on the device happens inside."""
        with self._lock:
            if self._closed:
                raise BackendError(f"this {self.name} backend is closed; open the bundle again")
            self.device.make_current()
            yield

    def run_loop(self, denoiser: Module, loop: DenoisingLoop, on_step: OnStep) -> Array:
        """Runs the loop on the device; ``denoiser`` must be of this backend, which ``on_step`` must not use.

        A loop of a solver without a table runs with its state in host memory instead.
        """
        own = self._own(denoiser)
        if not runs_on_device(loop):
            return run_loop_on_host(own, loop, on_step)
        with self.working():
            return own.loop.run(loop, on_step)

    def run_loop_timed(self, denoiser: Module, loop: DenoisingLoop) -> TimedLoop:
        """The same without reports, and the device time of its steps, or the time in calls from the host."""
        own = self._own(denoiser)
        if not runs_on_device(loop):
            return run_loop_on_host_timed(own, loop)
        with self.working():
            begin = perf_counter()
            x, engine_ms = own.loop.run_timed(loop)
            return TimedLoop(x, (perf_counter() - begin) * 1e3, engine_ms, "device")

    def _own(self, module: Module) -> DeviceModule:
        if not isinstance(module, DeviceModule) or module not in self._modules:
            raise TypeError(f"expected a module that this backend loaded, got {module!r}")
        return module

    def close(self) -> None:
        """Frees the device; modules of this backend cannot be used afterwards."""
        with self._lock:
            if self._closed:
                return
            self.device.make_current()
            self.device.synchronize()
            for module in self._modules:
                module.close()
            self._modules.clear()
            self._closed = True
            self.release()
            self.device.close()

    def release(self) -> None:
        """Frees what a backend holds besides its modules."""

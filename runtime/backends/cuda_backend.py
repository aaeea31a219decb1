"""The backend ``cuda``: plans of our own engine on a GPU, by the kernels that ``runtime/cubins`` ships."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from saishiki.runtime.backends.cuda import CudaDevice, driver_problem, import_cuda_core
from saishiki.runtime.backends.cuda_reference import InterpretedModule
from saishiki.runtime.backends.cudnn import (
    ChoiceCache,
    Cudnn,
    CudnnPart,
    ExecutionPlan,
    Handle,
    Operation,
    Planner,
    PlanTimer,
    choose_plan,
    circumstances_of,
    load_cudnn,
    why_cudnn_unavailable,
)
from saishiki.runtime.backends.device import InputUse, Memory
from saishiki.runtime.backends.on_device import DeviceBackend, DeviceModule
from saishiki.runtime.backends.op_times import time_ops
from saishiki.runtime.backends.plan_execution import PlanExecution, upload_weights
from saishiki.runtime.backends.plan_on_gpu import plan_on_gpu
from saishiki.runtime.backends.plans import LoadedPlan, find_plan, load_plan
from saishiki.runtime.backends.protocol import Module
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError
from saishiki.runtime.manifest import EngineEntry, Precision
from saishiki.runtime.plan import Plan
from saishiki.runtime.plan.ops import AnyOp, OpBackend
from saishiki.runtime.signature import Array, Sizes


def open_cuda(name: str, device: int) -> "CudaBackend":
    """The backend on a GPU; its own name tells which libraries it uses.

    Args:
        name: ``cuda-cudnn`` for cuDNN where it has engines, ``cuda-triton`` for our kernels alone, ``cuda`` for what
            is installed.

    Raises ``BackendError`` saying what is missing.
    """
    if reason := why_unavailable(name):
        raise BackendError(reason)
    gpu = CudaDevice(device)
    if name == "cuda-triton" or (name == "cuda" and why_cudnn_unavailable()):
        return CudaBackend(gpu)
    return CudaBackend(gpu, CudnnOnDevice(gpu, load_cudnn()))


def why_unavailable(name: str = "cuda") -> str | None:
    """Why a backend cannot run here, or None where it can."""
    if problem := driver_problem():
        return problem
    try:
        import_cuda_core()
    except BackendError as error:
        return str(error)
    return why_cudnn_unavailable() if name == "cuda-cudnn" else None


class CudnnOnDevice:
    """cuDNN on a device: a handle, and engines that are timed once for each operation and kept.

    Args:
        device: a :class:`saishiki.runtime.backends.cuda.CudaDevice`, or what behaves like one, current in this thread.
    """

    def __init__(self, device: Any, cudnn: Cudnn) -> None:
        self._handle = Handle(cudnn, device.stream)
        self._planner = Planner(cudnn, int(device.target.removeprefix("sm")), self._handle.value)
        circumstances = circumstances_of(self._planner, gpu=device.name, multiprocessors=device.multiprocessors)
        self._cache, self._timer = ChoiceCache(circumstances), PlanTimer(device, self._handle.value)
        self.part = CudnnPart(self._handle.value, self._choose)

    def _choose(self, operation: Operation) -> ExecutionPlan:
        return choose_plan(self._planner, operation, cache=self._cache, time_ms=self._timer)

    def close(self) -> None:
        """Destroys the handle; before the device's stream."""
        self._handle.close()


class PlannedModule(DeviceModule):
    """A plan in fp16 on a device."""

    def __init__(self, backend: "CudaBackend", loaded: LoadedPlan) -> None:
        super().__init__(backend, loaded.signature)
        self._part = backend.cudnn.part if backend.cudnn else None
        library: OpBackend = "cudnn" if backend.cudnn else "triton"
        loaded = replace(loaded, plan=plan_on_gpu(loaded.plan, target=backend.device.target, library=library))
        self._weights: dict[str, Memory] = upload_weights(backend.device, loaded)
        # Of the weights in host memory, only what is added to inputs before they are uploaded is needed any longer.
        biases = {vector.bias for vector in loaded.plan.hoisted.values()}
        self._loaded = replace(loaded, weights={name: loaded.weights[name] for name in biases})

    def depends_on_use(self) -> bool:
        """What depends on inputs that stay is computed once, and cuDNN takes what is alike for all pictures."""
        return True

    def new_execution(self, sizes: Sizes, use: InputUse) -> PlanExecution:
        """Memory and launches at these sizes; run once, so that every kernel is loaded."""
        device = self._backend.device
        execution = PlanExecution(
            device,
            self._loaded,
            self._weights,
            sizes,
            use=use,
            sms=device.multiprocessors,
            cudnn=self._part,
        )
        execution.prepare()
        execution.enqueue({})
        device.synchronize()
        return execution

    @property
    def plan(self) -> Plan:
        """What it runs."""
        return self._loaded.plan

    def ops_ms(self, **inputs: Array) -> Mapping[AnyOp, tuple[float, ...]]:
        """Device time of each operation alone, as :func:`~saishiki.runtime.backends.op_times.time_ops` takes it."""
        sizes = self.signature.sizes_from_arrays(inputs)
        with self._backend.working():
            execution = self._uploaded(inputs, sizes)
            assert isinstance(execution, PlanExecution)
            return time_ops(self._backend.device, execution)

    def close(self) -> None:
        """Frees graphs and memory."""
        super().close()
        self._weights.clear()


class CudaBackend(DeviceBackend):
    """Plans on one GPU. Thread-safe: one run at a time.

    A module whose plan is in fp32 is computed on the host: it is run once per schedule, and is small.

    Args:
        device: a :class:`saishiki.runtime.backends.cuda.CudaDevice`, or what behaves like one.
        cudnn: runs what it has engines for; None leaves all to our kernels.
    """

    default_precision: Precision = "fp16"

    def __init__(self, device: Any, cudnn: CudnnOnDevice | None = None) -> None:
        super().__init__("cuda-cudnn" if cudnn else "cuda-triton", device)
        self.cudnn = cudnn

    def check(self, bundle: Bundle, module: str, precision: Precision) -> EngineEntry:
        """The plan of a module; raises ``BackendError`` where the bundle has none in this precision."""
        return find_plan(bundle, module, precision)

    def load(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        """Loads a module's plan and its weights. Raises ``BundleError`` where a file is missing or damaged."""
        loaded = load_plan(bundle, module, precision)
        if loaded.plan.dtype == "float32":
            return InterpretedModule(loaded)
        with self.working():
            module_on_device = PlannedModule(self, loaded)
            self._modules.append(module_on_device)
        return module_on_device

    def release(self) -> None:
        """Destroys cuDNN's handle."""
        if self.cudnn:
            self.cudnn.close()

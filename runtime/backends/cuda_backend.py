"""The backend ``cuda``: plans of our own engine on a GPU, by the kernels that ``runtime/cubins`` ships."""

from typing import Any

from saishiki.runtime.backends.cuda import CudaDevice, driver_problem, import_cuda_core
from saishiki.runtime.backends.cuda_reference import InterpretedModule
from saishiki.runtime.backends.device import Memory
from saishiki.runtime.backends.on_device import DeviceBackend, DeviceModule
from saishiki.runtime.backends.plan_execution import PlanExecution, upload_weights
from saishiki.runtime.backends.plans import BACKEND, LoadedPlan, find_plan, load_plan
from saishiki.runtime.backends.protocol import Module
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError
from saishiki.runtime.manifest import EngineEntry, Precision
from saishiki.runtime.signature import Sizes


def open_cuda(device: int) -> "CudaBackend":
    """The backend on a GPU; raises ``BackendError`` saying what is missing."""
    if reason := why_unavailable():
        raise BackendError(reason)
    return CudaBackend(CudaDevice(device))


def why_unavailable() -> str | None:
    """Why this backend cannot run here, or None where it can."""
    if problem := driver_problem():
        return problem
    try:
        import_cuda_core()
    except BackendError as error:
        return str(error)
    return None


class PlannedModule(DeviceModule):
    """A plan in fp16 on a device."""

    def __init__(self, backend: "CudaBackend", loaded: LoadedPlan) -> None:
        super().__init__(backend, loaded.signature)
        self._loaded = loaded
        self._weights: dict[str, Memory] = upload_weights(backend.device, loaded)

    def depends_on_changing(self) -> bool:
        """What only depends on other inputs is computed once."""
        return True

    def new_execution(self, sizes: Sizes, changing: frozenset[str]) -> PlanExecution:
        """Memory and launches at these sizes; run once, so that every kernel is loaded."""
        device = self._backend.device
        execution = PlanExecution(
            device, self._loaded, self._weights, sizes, changing=changing, sms=device.multiprocessors
        )
        execution.prepare()
        execution.enqueue({})
        device.synchronize()
        return execution

    def close(self) -> None:
        """Frees graphs and memory."""
        super().close()
        self._weights.clear()


class CudaBackend(DeviceBackend):
    """Plans on one GPU. Thread-safe: one run at a time.

    A module whose plan is in fp32 is computed on the host: it is run once per schedule, and is small.

    Args:
        device: a :class:`saishiki.runtime.backends.cuda.CudaDevice`, or what behaves like one.
    """

    default_precision: Precision = "fp16"

    def __init__(self, device: Any) -> None:
        super().__init__(BACKEND, device)

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

"""On which backend the exported cases run: ONNX Runtime, or plans that are lowered from the same graphs.

Plans are interpreted, or run by the kernels that are shipped, in Triton's interpreter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from saishiki.export.plan import lower_graph
from saishiki.runtime.backends import open_backend
from saishiki.runtime.backends.cuda_backend import CudaBackend, PlannedModule
from saishiki.runtime.backends.cuda_reference import CudaReferenceBackend, InterpretedModule
from saishiki.runtime.backends.device import InputUse
from saishiki.runtime.backends.plan_execution import PlanExecution
from saishiki.runtime.backends.plans import LoadedPlan
from saishiki.runtime.backends.protocol import Backend, Module
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Precision
from saishiki.runtime.signature import Sizes
from tests.runtime.backends.interpreted_device import InterpretedDevice

Name = Literal["onnxruntime", "plans", "kernels"]
_CURRENT: ContextVar[Name] = ContextVar("backend", default="onnxruntime")


@contextmanager
def running_on(name: Name) -> Iterator[None]:
    """Within it the cases run there."""
    token = _CURRENT.set(name)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_backend() -> Name:
    return _CURRENT.get()


def opened(bundle: Bundle, name: Name) -> Backend:
    if name == "onnxruntime":
        return open_backend(bundle, "onnxruntime", "cpu")
    return PlansOfGraphs() if name == "plans" else KernelsOfGraphs()


def plan_of_graph(bundle: Bundle, module: str, precision: Precision) -> LoadedPlan:
    """The plan of whatever graph a bundle has that is closest to the precision, which nobody wrote a plan of."""
    entry = bundle.module(module)
    precision = entry.closest(precision)
    lowered = lower_graph(bundle.file(entry.graphs[precision].graph), entry.signature, precision)
    return LoadedPlan(lowered.plan, entry.signature, lowered.read_weights())


@dataclass
class PlansOfGraphs(CudaReferenceBackend):
    """The interpreter of plans on the graphs of a bundle."""

    loaded: dict[tuple[str, Precision], Module] = field(default_factory=dict)

    def load(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        key = module, bundle.module(module).closest(precision)
        if key not in self.loaded:
            self.loaded[key] = InterpretedModule(plan_of_graph(bundle, *key))
        return self.loaded[key]


class ColdModule(PlannedModule):
    """Nothing is computed before it is needed: in the interpreter there are no kernels to load."""

    def new_execution(self, sizes: Sizes, use: InputUse) -> PlanExecution:
        device = self._backend.device
        device.runs = False
        try:
            return super().new_execution(sizes, use)
        finally:
            device.runs = True


class KernelsOfGraphs(CudaBackend):
    """Our kernels alone on the graphs of a bundle; what a plan in fp32 computes, numpy does."""

    def __init__(self) -> None:
        super().__init__(InterpretedDevice())

    def load(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        loaded = plan_of_graph(bundle, module, precision)
        if loaded.plan.dtype == "float32":
            return InterpretedModule(loaded)
        with self.working():
            self._modules.append(ColdModule(self, loaded))
        return self._modules[-1]

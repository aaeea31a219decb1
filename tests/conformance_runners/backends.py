"""On which backend the exported cases run: ONNX Runtime, or plans that are lowered from the same graphs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from saishiki.export.plan import lower_graph
from saishiki.runtime.backends import open_backend
from saishiki.runtime.backends.cuda_reference import CudaReferenceBackend, InterpretedModule
from saishiki.runtime.backends.plans import LoadedPlan
from saishiki.runtime.backends.protocol import Backend, Module
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Precision

Name = Literal["onnxruntime", "plans"]
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
    return PlansOfGraphs() if name == "plans" else open_backend(bundle, "onnxruntime", "cpu")


@dataclass
class PlansOfGraphs(CudaReferenceBackend):
    """The interpreter of plans on whatever graphs a bundle has, in any precision, which nobody wrote plans of."""

    loaded: dict[tuple[str, Precision], Module] = field(default_factory=dict)

    def load(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        entry = bundle.module(module)
        precision = entry.closest(precision)
        if (module, precision) not in self.loaded:
            graph = entry.graphs[precision].graph
            lowered = lower_graph(bundle.file(graph), entry.signature, precision)
            weights = {name: stored.read() for name, stored in lowered.weights.items()}
            self.loaded[module, precision] = InterpretedModule(LoadedPlan(lowered.plan, entry.signature, weights))
        return self.loaded[module, precision]

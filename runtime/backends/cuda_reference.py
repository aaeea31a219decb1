"""Runs plans by the numpy references of their operations: what the backend ``cuda`` computes, without a GPU, slowly."""

from dataclasses import dataclass

from saishiki.runtime.backends.host_loop import run_loop_on_host, run_loop_on_host_timed
from saishiki.runtime.backends.plans import LoadedPlan, find_plan, load_plan
from saishiki.runtime.backends.protocol import DenoisingLoop, Module, OnStep, TimedLoop
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import EngineEntry, Precision
from saishiki.runtime.plan import interpret
from saishiki.runtime.signature import Array, Signature

NAME = "cuda-reference"


@dataclass(frozen=True)
class InterpretedModule:
    """A plan, run operation by operation in numpy."""

    loaded: LoadedPlan

    @property
    def signature(self) -> Signature:
        """What goes in and comes out."""
        return self.loaded.signature

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """The outputs by name, at any sizes; raises ``ValueError`` for inputs that do not fit the signature."""
        return interpret(self.loaded.plan, self.signature, self.loaded.weights, inputs)


class CudaReferenceBackend:
    """The interpreter of plans."""

    name = NAME
    default_precision: Precision = "fp16"

    def check(self, bundle: Bundle, module: str, precision: Precision) -> EngineEntry:
        """The plan of a module; raises ``BackendError`` where the bundle has none in this precision."""
        return find_plan(bundle, module, precision)

    def load(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        """Loads a module's plan; raises ``BundleError`` where a file is missing, damaged or of another version."""
        return InterpretedModule(load_plan(bundle, module, precision))

    def run_loop(self, denoiser: Module, loop: DenoisingLoop, on_step: OnStep) -> Array:
        """Runs the loop with its state in host memory."""
        return run_loop_on_host(denoiser, loop, on_step)

    def run_loop_timed(self, denoiser: Module, loop: DenoisingLoop) -> TimedLoop:
        """The same, and the time in it that went into the plan."""
        return run_loop_on_host_timed(denoiser, loop)

    def close(self) -> None:
        """Nothing to free."""

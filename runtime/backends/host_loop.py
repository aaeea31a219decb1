"""The denoising loop with its state in host memory: the loop of every backend that has none of its own."""

from dataclasses import dataclass
from time import perf_counter

from saishiki.runtime.backends.protocol import DenoisingLoop, Module, OnStep, TimedLoop, no_progress
from saishiki.runtime.signature import Array, Signature


def run_loop_on_host(denoiser: Module, loop: DenoisingLoop, on_step: OnStep) -> Array:
    """Runs the loop module call by module call: (B, C, H, W) fp32."""
    (prediction,) = denoiser.signature.outputs

    def network(model_input: Array, e: int) -> Array:
        return denoiser(**{loop.state: model_input}, **loop.inputs(e))[prediction.name]

    result: Array = loop.solver.sample(network, loop.x, loop.noise, on_step)
    return result


def run_loop_on_host_timed(denoiser: Module, loop: DenoisingLoop) -> TimedLoop:
    """The same run, and the time in it that went into calls of the denoiser."""
    timed = _TimedModule(denoiser)
    begin = perf_counter()
    x = run_loop_on_host(timed, loop, no_progress)
    return TimedLoop(x, (perf_counter() - begin) * 1e3, timed.total_ms, "host")


@dataclass
class _TimedModule:
    """A module, and the time spent in its calls so far."""

    module: Module
    total_ms: float = 0.0

    @property
    def signature(self) -> Signature:
        return self.module.signature

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        begin = perf_counter()
        outputs = self.module(**inputs)
        self.total_ms += (perf_counter() - begin) * 1e3
        return outputs

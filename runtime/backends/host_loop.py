"""The denoising loop with its state in host memory: the loop of every backend that has none of its own."""

import numpy as np

from saishiki.runtime.backends.protocol import DenoisingLoop, Module, OnStep
from saishiki.runtime.samplers import sample_ddim
from saishiki.runtime.signature import Array


def run_loop_on_host(denoiser: Module, loop: DenoisingLoop, on_step: OnStep) -> Array:
    """Runs the loop module call by module call: (B, C, H, W) fp32."""
    (prediction,) = denoiser.signature.outputs
    batch = len(loop.x)

    def denoise(x: Array, k: int) -> Array:
        per_step = {name: np.repeat(rows[k : k + 1], batch, axis=0) for name, rows in loop.per_step.items()}
        return denoiser(**{loop.state: x}, **loop.constants, **per_step)[prediction.name]

    result: Array = sample_ddim(denoise, loop.x, loop.schedule, noise=loop.noise, on_step=on_step)
    return result

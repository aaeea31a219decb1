"""The functions that samplers call."""

from collections.abc import Callable
from typing import Any

Network = Callable[[Any, int], Any]
"""``network(model_input, e)``: the output of evaluation e, (G * B, C, H, W) for G guidance slots from (B, C, H, W).

A network that wants its input once per slot repeats it itself. Where a step asks once, e is the step.
"""
Denoise = Callable[[Any, int], Any]
"""``denoise(x, k)``: what is estimated at loop iteration k, (B, C, H, W) from x of that shape.

For the k-diffusion solvers that is x0, for AnimeDiffusion's samplers the noise.
"""
DenoiseAt = Callable[[Any, float], Any]
"""``denoise(x, sigma)``: x0 as estimated at a noise level, for solvers that ask more than once in a step."""
OnStep = Callable[[int, Any], None]
"""``on_step(k, x)``: called after every iteration; an exception it raises ends the run."""

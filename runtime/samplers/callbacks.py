"""The functions that samplers call."""

from collections.abc import Callable
from typing import Any

Network = Callable[[Any, int], Any]
"""``network(model_input, k)``: the output at loop iteration k, both (G * B, C, H, W) for G guidance slots."""
Denoise = Callable[[Any, int], Any]
"""``denoise(x, k)``: what is estimated at loop iteration k, (B, C, H, W) from x of that shape.

For the k-diffusion solvers that is x0, for AnimeDiffusion's samplers the noise.
"""
OnStep = Callable[[int, Any], None]
"""``on_step(k, x)``: called after every iteration; an exception it raises ends the run."""

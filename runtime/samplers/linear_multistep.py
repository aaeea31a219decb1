"""The linear multistep solver of k-diffusion, where x = x0 + sigma * eps; also diffusers' ``LMSDiscreteScheduler``.

A step integrates the polynomial through the slopes of the last four steps, Adams-Bashforth for uneven steps. Source:
crowsonkb/k-diffusion, ``sampling.py``; Hairer, Norsett, Wanner, Solving ordinary differential equations I, III.5.
"""

import math
from collections.abc import Sequence
from typing import Any

from saishiki.runtime.samplers.callbacks import Denoise, OnStep
from saishiki.runtime.samplers.k_diffusion import checked_sigmas

ORDER = 4


def sample_lms(denoise: Denoise, x: Any, sigmas: Sequence[float], *, on_step: OnStep | None = None) -> Any:
    """The image, (B, C, H, W), by steps of order 1, 2, 3, then 4; ``denoise(x, k)`` returns x0 at ``sigmas[k]``."""
    levels = checked_sigmas(sigmas)
    slopes: list[Any] = []
    for k in range(len(levels) - 1):
        slopes = [(x - denoise(x, k)) / levels[k], *slopes[: ORDER - 1]]
        past = levels[k::-1][: len(slopes)]
        for slope, weight in zip(slopes, multistep_weights(past, levels[k + 1]), strict=True):
            x = x + weight * slope
        if on_step is not None:
            on_step(k, x)
    return x


def multistep_weights(past: Sequence[float], following: float) -> list[float]:
    """For each level, the integral of its Lagrange polynomial from ``past[0]`` to ``following``.

    Exact for up to four levels: their polynomials are of degree 3, and Gauss' two points integrate that.
    """
    middle, half = (past[0] + following) / 2, (following - past[0]) / 2
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [half * sum(_lagrange(past, j, point) for point in points) for j in range(len(past))]


def _lagrange(nodes: Sequence[float], j: int, at: float) -> float:
    """The polynomial that is 1 at node j and 0 at the others."""
    return math.prod((at - node) / (nodes[j] - node) for i, node in enumerate(nodes) if i != j)

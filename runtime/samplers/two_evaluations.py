"""Solvers of k-diffusion that ask twice in a step, where x = x0 + sigma * eps: Heun, DPM2, DPM++ 2S and DPM++ SDE.

``denoise(x, sigma)`` returns x0 as estimated at that noise level. ``sigmas`` falls, (S + 1,), and ends with 0; the step
to 0 asks once and returns x0, so there are 2 S - 1 evaluations. Steps draw noise of variance 1, ``noise[0]`` first;
the step to 0 draws none.

Source: Karras et al., arXiv 2206.00364, algorithm 1 (Heun); Lu et al., arXiv 2206.00927 (DPM-Solver-2) and 2211.01095
(DPM-Solver++), with the ancestral and stochastic steps of k-diffusion (crowsonkb/k-diffusion, ``sampling.py``).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from saishiki.runtime.samplers.callbacks import DenoiseAt, OnStep
from saishiki.runtime.samplers.k_diffusion import ancestral_split, checked_sigmas

Step = Callable[[Any, float, float, int], Any]


def sample_heun(denoise: DenoiseAt, x: Any, sigmas: Sequence[float], *, on_step: OnStep | None = None) -> Any:
    """The image, (B, C, H, W), by Heun steps: the mean of the slopes at both ends of the step."""

    def step(x: Any, sigma: float, following: float, k: int) -> Any:
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (following - sigma) * slope
        return x + (following - sigma) * (slope + (ahead - denoise(ahead, following)) / following) / 2

    return _walk(step, denoise, x, sigmas, on_step)


def sample_dpm2(denoise: DenoiseAt, x: Any, sigmas: Sequence[float], *, on_step: OnStep | None = None) -> Any:
    """The image, (B, C, H, W), by DPM-Solver-2 steps: the slope at the middle of the step in ln(sigma)."""

    def step(x: Any, sigma: float, following: float, k: int) -> Any:
        return _midpoint_step(denoise, x, sigma, following)

    return _walk(step, denoise, x, sigmas, on_step)


def sample_dpm2_ancestral(
    denoise: DenoiseAt,
    x: Any,
    sigmas: Sequence[float],
    *,
    noise: Any | None,
    eta: float = 1.0,
    on_step: OnStep | None = None,
) -> Any:
    """The image, (B, C, H, W), by DPM-Solver-2 steps to below the next level, and back to it with new noise: S - 1."""

    def step(x: Any, sigma: float, following: float, k: int) -> Any:
        down, up = ancestral_split(sigma, following, eta)
        return _noised(_midpoint_step(denoise, x, sigma, down), noise, k, up)

    return _walk(step, denoise, x, sigmas, on_step)


def sample_dpmpp_2s_ancestral(
    denoise: DenoiseAt,
    x: Any,
    sigmas: Sequence[float],
    *,
    noise: Any | None,
    eta: float = 1.0,
    on_step: OnStep | None = None,
) -> Any:
    """The image, (B, C, H, W), by DPM-Solver++(2S) steps to below the next level, and new noise: S - 1."""

    def step(x: Any, sigma: float, following: float, k: int) -> Any:
        down, up = ancestral_split(sigma, following, eta)
        middle = math.sqrt(sigma * down)
        inside = _toward(x, denoise(x, sigma), sigma, middle)
        return _noised(_toward(x, denoise(inside, middle), sigma, down), noise, k, up)

    return _walk(step, denoise, x, sigmas, on_step)


def sample_dpmpp_sde(
    denoise: DenoiseAt,
    x: Any,
    sigmas: Sequence[float],
    *,
    noise: Any | None,
    eta: float = 1.0,
    on_step: OnStep | None = None,
) -> Any:
    """The image, (B, C, H, W), by DPM-Solver++ steps with noise both at the middle and at the end: 2 (S - 1)."""

    def step(x: Any, sigma: float, following: float, k: int) -> Any:
        middle = math.sqrt(sigma * following)
        down, up = ancestral_split(sigma, middle, eta)
        inside = _noised(_toward(x, denoise(x, sigma), sigma, down), noise, 2 * k, up)
        down, up = ancestral_split(sigma, following, eta)
        # The middle's x0 alone counts where it lies half-way.
        return _noised(_toward(x, denoise(inside, middle), sigma, down), noise, 2 * k + 1, up)

    return _walk(step, denoise, x, sigmas, on_step)


def _walk(step: Step, denoise: DenoiseAt, x: Any, sigmas: Sequence[float], on_step: OnStep | None) -> Any:
    for k, (sigma, following) in enumerate(pairwise(checked_sigmas(sigmas))):
        x = denoise(x, sigma) if following == 0 else step(x, sigma, following, k)
        if on_step is not None:
            on_step(k, x)
    return x


def _midpoint_step(denoise: DenoiseAt, x: Any, sigma: float, following: float) -> Any:
    middle = math.sqrt(sigma * following)
    inside = x + (middle - sigma) * (x - denoise(x, sigma)) / sigma
    return x + (following - sigma) * (inside - denoise(inside, middle)) / middle


def _toward(x: Any, x0: Any, sigma: float, following: float) -> Any:
    """x at another level where x0 stays: ``(sigma' / sigma) * x + (1 - sigma' / sigma) * x0``."""
    return (following / sigma) * x + (1 - following / sigma) * x0


def _noised(x: Any, noise: Any | None, draw: int, deviation: float) -> Any:
    if deviation == 0:
        return x
    if noise is None:
        raise ValueError(f"expected noise, because draw {draw} adds some of deviation {deviation:g}; got none")
    return x + deviation * noise[draw]

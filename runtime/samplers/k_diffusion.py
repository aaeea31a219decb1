"""The solvers of k-diffusion over arrays: x = x0 + sigma * eps, so x is as large as sigma.

``denoise(x, k)`` returns x0 as estimated at ``sigmas[k]``; see :func:`.parameterisation.denoise_at_sigmas`. ``sigmas``
falls, (S + 1,), and ends with 0, where x is x0 exactly. The start is noise times ``sigmas[0]``, and the model's input
is x times :func:`.parameterisation.input_scale`. ``noise[k]`` is what step k adds, (B, C, H, W) of variance 1; the step
to 0 adds none, so S - 1 of them do.

Source: Karras et al., arXiv 2206.00364 (Euler); Lu et al., arXiv 2211.01095 (DPM-Solver++), in the form and with the
ancestral and third-order steps of k-diffusion (crowsonkb/k-diffusion, ``sampling.py``). diffusers' multistep
DPM-Solver++ is :func:`sample_dpmpp_2m` started at ``noise * sqrt(sigmas[0]^2 + 1)``; its x is ours times the input
scale.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

from saishiki.runtime.samplers.callbacks import Denoise, OnStep

Midpoint = Literal["midpoint", "heun"]


def checked_sigmas(sigmas: Sequence[float]) -> list[float]:
    """The noise levels as Python floats; raises ``ValueError`` unless they fall, from above 0 to 0."""
    levels = [float(sigma) for sigma in sigmas]
    if len(levels) < 2 or levels[-1] != 0 or not all(a > b for a, b in pairwise(levels)):
        raise ValueError(f"expected falling sigmas that end with 0, got {levels}")
    return levels


def ancestral_split(sigma: float, following: float, eta: float) -> tuple[float, float]:
    """The noise level that an ancestral step goes down to, and how much noise it then adds."""
    up = min(following, eta * math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
    return math.sqrt(following**2 - up**2), up


def sample_euler(denoise: Denoise, x: Any, sigmas: Sequence[float], *, on_step: OnStep | None = None) -> Any:
    """The image, (B, C, H, W), by Euler steps: ``x + (sigma' - sigma) * (x - x0) / sigma``."""
    for k, (sigma, following) in enumerate(pairwise(checked_sigmas(sigmas))):
        slope = (x - denoise(x, k)) / sigma
        x = x + (following - sigma) * slope
        _report(on_step, k, x)
    return x


def sample_euler_ancestral(
    denoise: Denoise,
    x: Any,
    sigmas: Sequence[float],
    *,
    noise: Any | None,
    eta: float = 1.0,
    on_step: OnStep | None = None,
) -> Any:
    """The image, (B, C, H, W), by Euler steps to below the next noise level, and back to it with new noise.

    Raises ``ValueError`` where eta is above 0 and there is no noise.
    """
    levels = checked_sigmas(sigmas)
    _check_noise(noise, eta, levels)
    for k, (sigma, following) in enumerate(pairwise(levels)):
        down, up = ancestral_split(sigma, following, eta)
        slope = (x - denoise(x, k)) / sigma
        x = x + (down - sigma) * slope
        if up > 0 and noise is not None:
            x = x + up * noise[k]
        _report(on_step, k, x)
    return x


def sample_dpmpp_2m(denoise: Denoise, x: Any, sigmas: Sequence[float], *, on_step: OnStep | None = None) -> Any:
    """The image, (B, C, H, W), by DPM-Solver++(2M); the first step and the last one are of first order."""
    previous: Any = None
    h_last = 0.0
    for k, (sigma, following) in enumerate(pairwise(checked_sigmas(sigmas))):
        x0 = denoise(x, k)
        if following == 0:
            x = x0
        else:
            h = math.log(sigma / following)
            ahead = x0 if previous is None else x0 + (x0 - previous) * (h / (2 * h_last))
            x = (following / sigma) * x - math.expm1(-h) * ahead
            previous, h_last = x0, h
        _report(on_step, k, x)
    return x


def sample_dpmpp_2m_sde(
    denoise: Denoise,
    x: Any,
    sigmas: Sequence[float],
    *,
    noise: Any | None,
    eta: float = 1.0,
    solver: Midpoint = "midpoint",
    on_step: OnStep | None = None,
) -> Any:
    """The image, (B, C, H, W), by DPM-Solver++(2M) for the stochastic equation; eta is the share of new noise.

    Raises ``ValueError`` for another solver, and where eta is above 0 and there is no noise.
    """
    levels = checked_sigmas(sigmas)
    _check_noise(noise, eta, levels)
    correction = second_order_weight(solver)
    previous: Any = None
    h_last = 0.0
    for k, (sigma, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, k)
        if following == 0:
            x = x0
        else:
            h = math.log(sigma / following)
            x = (following / sigma) * math.exp(-eta * h) * x - math.expm1(-h * (1 + eta)) * x0
            if previous is not None:
                x = x + correction(h * (1 + eta)) * (h / h_last) * (x0 - previous)
            x = _with_noise(x, noise, k, following, eta * h)
            previous, h_last = x0, h
        _report(on_step, k, x)
    return x


def second_order_weight(solver: Midpoint) -> Callable[[float], float]:
    """Of a step length in units of lambda, the weight of x0's slope; raises ``ValueError`` for another solver."""
    weights: dict[str, Callable[[float], float]] = {
        "midpoint": lambda h: -0.5 * math.expm1(-h),
        "heun": lambda h: math.expm1(-h) / h + 1,
    }
    if solver not in weights:
        raise ValueError(f"expected a solver of {' or '.join(weights)}, got {solver!r}")
    return weights[solver]


def sample_dpmpp_3m_sde(
    denoise: Denoise,
    x: Any,
    sigmas: Sequence[float],
    *,
    noise: Any | None,
    eta: float = 1.0,
    on_step: OnStep | None = None,
) -> Any:
    """The image, (B, C, H, W), by DPM-Solver++(3M) for the stochastic equation; orders 1, 2, 3, 3, ... and 1.

    Raises ``ValueError`` where eta is above 0 and there is no noise.
    """
    levels = checked_sigmas(sigmas)
    _check_noise(noise, eta, levels)
    past: list[tuple[Any, float]] = []  # x0 and step length of the steps before, the last one first
    for k, (sigma, following) in enumerate(pairwise(levels)):
        x0 = denoise(x, k)
        if following == 0:
            x = x0
        else:
            h = math.log(sigma / following)
            reach = h * (1 + eta)
            x = math.exp(-reach) * x - math.expm1(-reach) * x0 + _curvature(x0, past, h, reach)
            x = _with_noise(x, noise, k, following, eta * h)
            past = [(x0, h), *past[:1]]
        _report(on_step, k, x)
    return x


def _curvature(x0: Any, past: Sequence[tuple[Any, float]], h: float, reach: float) -> Any:
    """What the second and third order add to a step of the 3M solver."""
    if not past:
        return 0.0
    phi_2 = math.expm1(-reach) / reach + 1
    x0_1, r_0 = past[0][0], past[0][1] / h
    slope = (x0 - x0_1) / r_0
    if len(past) == 1:
        return phi_2 * slope
    x0_2, r_1 = past[1][0], past[1][1] / h
    phi_3 = phi_2 / reach - 0.5
    earlier = (x0_1 - x0_2) / r_1
    bend = (slope - earlier) / (r_0 + r_1)
    return phi_2 * (slope + r_0 * bend) - phi_3 * bend


def noise_deviation(following: float, h: float) -> float:
    """How much noise a stochastic step adds: ``sigma' * sqrt(1 - exp(-2 h))``, with h times eta."""
    return following * math.sqrt(-math.expm1(-2 * h))


def _with_noise(x: Any, noise: Any | None, k: int, following: float, h: float) -> Any:
    return x if noise is None or h == 0 else x + noise_deviation(following, h) * noise[k]


def _check_noise(noise: Any | None, eta: float, levels: Sequence[float]) -> None:
    draws = len(levels) - 2
    if eta > 0 and draws and noise is None:
        raise ValueError(f"expected noise for {draws} steps, because eta is {eta} and not 0")


def _report(on_step: OnStep | None, k: int, x: Any) -> None:
    if on_step is not None:
        on_step(k, x)

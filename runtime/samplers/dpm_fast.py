"""DPM-Solver-fast, where x = x0 + sigma * eps: steps of third order, evenly spaced in ln(sigma), and a shorter rest.

Source: Lu et al., arXiv 2206.00927, section 3.4 and algorithms 1 and 2, with the ancestral steps of k-diffusion
(crowsonkb/k-diffusion, ``sampling.py``). It ends at the least noise level, not at 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from saishiki.runtime.samplers.callbacks import DenoiseAt, OnStep
from saishiki.runtime.samplers.k_diffusion import ancestral_split

Eps = Callable[[Any, float], Any]


def fast_orders(evaluations: int) -> tuple[int, ...]:
    """The order of each step, which is also how often it asks; their sum is ``evaluations``.

    Raises ``ValueError`` for fewer than 1.
    """
    if evaluations < 1:
        raise ValueError(f"expected at least 1 evaluation, got {evaluations}")
    thirds, rest = divmod(evaluations, 3)
    return (3,) * (thirds - 1) + (2, 1) if rest == 0 else (3,) * thirds + (rest,)


def sample_dpm_fast(
    denoise: DenoiseAt,
    x: Any,
    ends: Sequence[float],
    evaluations: int,
    *,
    noise: Any | None,
    eta: float = 1.0,
    on_step: OnStep | None = None,
) -> Any:
    """x at the least noise level, (B, C, H, W), by ``evaluations`` calls of ``denoise(x, sigma)``.

    Args:
        ends: the greatest and the least noise level; x is noise times the first.
        noise: one draw a step, the last one included, which adds nothing of it. None where eta is 0.
    """
    orders, (high, low) = fast_orders(evaluations), map(float, ends)
    levels = [high * (low / high) ** (k / len(orders)) for k in range(len(orders))] + [low]

    def eps(x: Any, sigma: float) -> Any:
        return (x - denoise(x, sigma)) / sigma

    for k, (order, (sigma, following)) in enumerate(zip(orders, pairwise(levels), strict=True)):
        down = max(low, ancestral_split(sigma, following, eta)[0]) if eta else following
        x = _STEPS[order](eps, x, sigma, down)
        up = math.sqrt(max(0.0, following**2 - down**2))
        if up > 0:
            if noise is None:
                raise ValueError(f"expected noise for {len(orders)} steps, because eta is {eta} and not 0")
            x = x + up * noise[k]
        if on_step is not None:
            on_step(k, x)
    return x


def _first(eps: Eps, x: Any, sigma: float, following: float) -> Any:
    return x + (following - sigma) * eps(x, sigma)


def _second(eps: Eps, x: Any, sigma: float, following: float) -> Any:
    middle = math.sqrt(sigma * following)
    return x + (following - sigma) * eps(x + (middle - sigma) * eps(x, sigma), middle)


def _third(eps: Eps, x: Any, sigma: float, following: float) -> Any:
    h, slope = math.log(sigma / following), eps(x, sigma)
    one, two = (sigma * (following / sigma) ** part for part in (1 / 3, 2 / 3))
    first = eps(x + (one - sigma) * slope, one) - slope
    second = eps(x + (two - sigma) * slope - 2 * two * _bend(2 * h / 3) * first, two) - slope
    return x + (following - sigma) * slope - 1.5 * following * _bend(h) * second


def _bend(h: float) -> float:
    return math.expm1(h) / h - 1


_STEPS: Mapping[int, Callable[[Eps, Any, float, float], Any]] = {1: _first, 2: _second, 3: _third}

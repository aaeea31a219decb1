"""DDIM for any prediction and guidance: ``x = sqrt(gamma) * x0 + sqrt(1 - gamma) * eps``, of variance 1 throughout.

``gamma`` is what other texts call alpha-bar. Source: Song et al., arXiv 2010.02502, eq. 12 and 16, as diffusers'
``DDIMScheduler`` runs it. AnimeDiffusion's own loop is :mod:`.animediffusion`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from saishiki.runtime.samplers.callbacks import Network, OnStep
from saishiki.runtime.samplers.parameterisation import (
    Parameterisation,
    eps_from_prediction,
    guide,
    x0_from_prediction,
)


def checked_gammas(gammas: Sequence[float]) -> list[float]:
    """Signal variances as Python floats; raises ``ValueError`` unless they rise, from above 0 to at most 1."""
    values = [float(gamma) for gamma in gammas]
    if len(values) < 2 or not values[0] > 0 or not values[-1] <= 1 or not all(a < b for a, b in pairwise(values)):
        raise ValueError(f"expected rising gammas between 0 and 1, got {values}")
    return values


def ddim_sigma(gamma: float, following: float, eta: float) -> float:
    """How much noise a step adds: eta times the posterior's deviation."""
    return eta * math.sqrt((1 - following) / (1 - gamma) * (1 - gamma / following))


def sample_ddim_gammas(
    network: Network,
    x: Any,
    gammas: Sequence[float],
    how: Parameterisation,
    *,
    eta: float = 0.0,
    noise: Any | None = None,
    on_step: OnStep | None = None,
) -> Any:
    """The image, (B, C, H, W), from x at ``gammas[0]``; eps is not derived anew from a clamped x0.

    Args:
        network: called with x itself.
        gammas: (S + 1,), rising; the last one is where the run ends, usually 1.
        noise: ``noise[k]`` is what step k adds; the step to a gamma of 1 adds none.

    Raises ``ValueError`` for other gammas, and where a step adds noise and there is none.
    """
    for k, (gamma, following) in enumerate(pairwise(checked_gammas(gammas))):
        levels = {"signal": math.sqrt(gamma), "noise": math.sqrt(1 - gamma)}
        prediction = guide(network(x, k), how.scales(k))
        x0 = how.limit(x0_from_prediction(x, prediction, how.prediction, **levels))
        eps = eps_from_prediction(x, prediction, how.prediction, **levels)
        sigma = ddim_sigma(gamma, following, eta)
        x = math.sqrt(following) * x0 + math.sqrt(max(0.0, 1 - following - sigma**2)) * eps
        if sigma > 0:
            if noise is None:
                raise ValueError(f"expected noise, because step {k} at eta {eta} adds some")
            x = x + sigma * noise[k]
        if on_step is not None:
            on_step(k, x)
    return x

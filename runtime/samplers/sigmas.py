"""Noise levels: the table of a trained network, the ways to space a run's levels over it, and their timesteps.

``sigma = sqrt((1 - gamma) / gamma)`` where ``x = x0 + sigma * eps``; gamma is what other texts call alpha-bar. Between
two timesteps, ln(sigma) is interpolated. All in fp32, as published: near the last timestep a timestep is as exact as
ln(sigma) is.

Source: Karras et al., arXiv 2206.00364, eq. 5 (``karras``); the others as in k-diffusion (crowsonkb/k-diffusion,
``sampling.py`` and ``external.py``) and, for ``sgm_uniform``, in Stability's generative models.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
RHO = 7.0


def sigmas_from_gammas(gammas: Float32) -> Float32:
    """(T,) fp32 noise levels of the T training timesteps; raises ``ValueError`` unless they rise, all above 0."""
    table = np.asarray(gammas, np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        sigmas: Float32 = np.sqrt((np.float32(1) - table) / table)
    rising = table.ndim == 1 and len(table) > 1 and np.isfinite(sigmas).all() and (np.diff(sigmas, prepend=0) > 0).all()
    if not rising:
        raise ValueError("expected alphas_cumprod (T,) that fall, between 1 and 0; read them from the checkpoint")
    return sigmas


def t_from_sigma(sigma: Float32, table: Float32) -> Float32:
    """Timesteps of noise levels, not rounded, within 0 .. T - 1; of any shape."""
    log_table, log_sigma = np.log(table), np.log(np.asarray(sigma, np.float32))
    low = (np.searchsorted(log_table, log_sigma, side="right") - 1).clip(0, len(table) - 2)
    weight = ((log_table[low] - log_sigma) / (log_table[low] - log_table[low + 1])).clip(0, 1)
    t: Float32 = ((1 - weight) * low.astype(np.float32) + weight * (low + 1).astype(np.float32)).astype(np.float32)
    return t


def sigma_from_t(t: Float32, table: Float32) -> Float32:
    """Noise levels of timesteps within 0 .. T - 1, whole or not; of any shape."""
    t, log_table = np.asarray(t, np.float32), np.log(table)
    low, high = np.floor(t).astype(np.int64), np.ceil(t).astype(np.int64)
    weight = t - low.astype(np.float32)
    sigma: Float32 = np.exp((1 - weight) * log_table[low] + weight * log_table[high]).astype(np.float32)
    return sigma


def karras(table: Float32, steps: int) -> Float32:
    """(S,) evenly spaced in ``sigma^(1/7)`` between the table's ends, falling."""
    low, high = float(table[0]) ** (1 / RHO), float(table[-1]) ** (1 / RHO)
    levels: Float32 = ((high + np.linspace(0, 1, steps) * (low - high)) ** RHO).astype(np.float32)
    return levels


def exponential(table: Float32, steps: int) -> Float32:
    """(S,) evenly spaced in ln(sigma) between the table's ends, falling."""
    return np.exp(np.linspace(np.log(table[-1]), np.log(table[0]), steps)).astype(np.float32)


def uniform(table: Float32, steps: int) -> Float32:
    """(S,) at evenly spaced timesteps, T - 1 to 0."""
    return sigma_from_t(np.linspace(len(table) - 1, 0, steps, dtype=np.float32), table)


def sgm_uniform(table: Float32, steps: int) -> Float32:
    """(S,) at evenly spaced timesteps, the first S of S + 1 from T - 1 to 0."""
    return sigma_from_t(np.linspace(len(table) - 1, 0, steps + 1, dtype=np.float32)[:-1], table)


SPACINGS: Mapping[str, Callable[[Float32, int], Float32]] = {
    "Karras": karras,
    "Exponential": exponential,
    # Of degree 1 in ln(sigma), as the published tool calls it.
    "Polyexponential": exponential,
    "SGM Uniform": sgm_uniform,
    "Uniform": uniform,
}


def with_zero(sigmas: Float32) -> Float32:
    """(S + 1,) levels of a run: the last step ends without noise."""
    return np.append(sigmas, np.float32(0))

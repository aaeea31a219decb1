"""The diffusion schedule: fp32 tables as stored in a checkpoint, and DDIM's timesteps and coefficients from them.

Facts from AnimeDiffusion (arXiv 2303.11137; xq-meng/AnimeDiffusion, commit 1582eb0). ``gamma`` is what other texts call
alpha-bar. Near t = 0 the value of ``1 - gamma`` is pure fp32 cancellation, so the stored fp32 tables are used as they
are.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

BUFFERS = (
    "gammas",
    "sqrt_reciprocal_gammas",
    "sqrt_reciprocal_gammas_m1",
    "posterior_variance",
    "posterior_log_variance",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


def linear_betas(timesteps: int, linear_start: float, linear_end: float) -> Float32:
    """(T,) fp32 betas, evenly spaced from start to end inclusive, both scaled by 1000 / T.

    Rounded as ``torch.linspace`` rounds: an fp32 step, counted from the nearer end, one rounding per value.
    """
    start, end = np.float32(1000 / timesteps * linear_start), np.float32(1000 / timesteps * linear_end)
    step = np.float64((end - start) / np.float32(max(timesteps - 1, 1)))
    index = np.arange(timesteps)
    rising, falling = start + step * index, end - step * (timesteps - 1 - index)
    return np.where(index < timesteps // 2, rising, falling).astype(np.float32)


def schedule_buffers(betas: Float32) -> dict[str, Float32]:
    """The seven (T,) fp32 tables of a published checkpoint, from its (T,) fp32 betas."""
    one = np.float32(1)
    gammas = np.cumprod(one - betas, dtype=np.float64).astype(np.float32)  # accumulated in fp64, as torch does on CPU
    previous = np.concatenate([[one], gammas[:-1]])
    variance = betas * (one - previous) / (one - gammas)
    return {
        "gammas": gammas,
        "sqrt_reciprocal_gammas": np.sqrt(one / gammas),
        "sqrt_reciprocal_gammas_m1": np.sqrt(one / gammas - one),
        "posterior_variance": variance,
        "posterior_log_variance": np.log(np.maximum(variance, np.float32(1e-20))),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (one - gammas),
        "posterior_mean_coef2": (one - previous) * np.sqrt(one - betas) / (one - gammas),
    }


@dataclass(frozen=True)
class DiffusionSchedule:
    """The seven (T,) fp32 tables, by their published names."""

    buffers: Mapping[str, Float32]

    @property
    def gammas(self) -> Float32:
        """(T,) fp32: the fraction of signal variance left at each timestep."""
        return self.buffers["gammas"]

    @property
    def timesteps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.gammas)


@dataclass(frozen=True)
class DDIMSchedule:
    """The tables of one DDIM run, (S,) each, in the order of the loop.

    ``x0 = clip((x - noise_level * eps) / signal_level, -1, 1)``, then
    ``x = x0_coefficient * x0 + eps_coefficient * eps + sigma * z``.
    """

    t: NDArray[np.int64]
    t_prev: NDArray[np.int64]
    gamma_t: Float32
    gamma_prev: Float32
    signal_level: Float32
    noise_level: Float32
    x0_coefficient: Float32
    eps_coefficient: Float32
    sigma: Float32

    def __len__(self) -> int:
        return len(self.t)


def ddim_timesteps(timesteps: int, steps: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(S,) timesteps t and where each step leads, t_prev, in the order of the loop.

    ``t_k = 1 + k * (T // steps)`` as published: shifted by one, the last step leads to 0, and where ``steps`` does not
    divide T the run starts lower than expected. Raises ``TypeError`` for steps that are no whole number, and
    ``ValueError`` for steps outside 1..T-1, where upstream fails too.
    """
    steps = operator.index(steps)
    if not 1 <= steps < timesteps:
        raise ValueError(f"steps must be between 1 and {timesteps - 1}, got {steps}")
    ascending = 1 + np.arange(steps, dtype=np.int64) * (timesteps // steps)
    previous = np.concatenate([np.zeros(1, np.int64), ascending[:-1]])
    return ascending[::-1].copy(), previous[::-1].copy()


def ddim_schedule(schedule: DiffusionSchedule, *, steps: int, eta: float) -> DDIMSchedule:
    """The DDIM tables for ``steps`` steps, in fp32 arithmetic; ``eta`` 0 is deterministic, 1 the published default.

    Raises ``ValueError`` for eta outside 0..1 and as :func:`ddim_timesteps` does.
    """
    if not (np.isfinite(eta) and 0.0 <= eta <= 1.0):
        raise ValueError(f"eta must be between 0 (deterministic) and 1 (published default), got {eta}")
    t, t_prev = ddim_timesteps(schedule.timesteps, steps)
    one = np.float32(1)
    gamma, previous = schedule.gammas[t], schedule.gammas[t_prev]
    sigma = np.float32(eta) * np.sqrt((one - previous) / (one - gamma) * (one - gamma / previous))
    return DDIMSchedule(
        t=t,
        t_prev=t_prev,
        gamma_t=gamma,
        gamma_prev=previous,
        signal_level=np.sqrt(gamma),
        noise_level=np.sqrt(one - gamma),
        x0_coefficient=np.sqrt(previous),
        eps_coefficient=np.sqrt(one - previous - sigma**2),
        sigma=sigma,
    )

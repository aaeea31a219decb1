"""AnimeDiffusion's samplers: DDIM with a clipped x0, the walk to a start noise, and one ancestral step.

State is fp32. ``denoise(x, k)`` returns the noise predicted at loop iteration ``k``. Formulas as published
(arXiv 2303.11137; xq-meng/AnimeDiffusion, commit 1582eb0); DDIM is Song et al., arXiv 2010.02502, eq. 12.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from saishiki.runtime.samplers.callbacks import Denoise, Network, OnStep
from saishiki.runtime.samplers.protocol import Solver
from saishiki.runtime.samplers.tables import ddim_table
from saishiki.runtime.schedule import DDIMSchedule, DiffusionSchedule


def ddim_step(x: Any, eps: Any, schedule: DDIMSchedule, k: int, noise: Any | None) -> Any:
    """x after iteration k: (B, C, H, W) from x, eps and noise of that shape; ``noise`` may be None where sigma is 0.

    The prediction of x0 is always clipped to [-1, 1], and eps is not derived anew from the clipped x0.
    """
    x0 = (x - float(schedule.noise_level[k]) * eps) / float(schedule.signal_level[k])
    x = float(schedule.x0_coefficient[k]) * x0.clip(-1.0, 1.0) + float(schedule.eps_coefficient[k]) * eps
    return x if noise is None else x + float(schedule.sigma[k]) * noise


def sample_ddim(
    denoise: Denoise, x: Any, schedule: DDIMSchedule, *, noise: Any | None, on_step: OnStep | None = None
) -> Any:
    """The image, (B, C, H, W) about [-1, 1], from x at the first timestep.

    Args:
        noise: (S, B, C, H, W), fresh Gaussian noise for every iteration, the last one included; None where eta is 0.
        on_step: called with (k, x) after every iteration; an exception it raises ends the run.
    """
    for k in range(len(schedule)):
        x = ddim_step(x, denoise(x, k), schedule, k, None if noise is None else noise[k])
        if on_step is not None:
            on_step(k, x)
    return x


def ddim_solver(schedule: DDIMSchedule) -> Solver:
    """:func:`sample_ddim` with its schedule; x itself is the network's input, and every step adds noise, or none."""

    def run(network: Network, x: Any, noise: Any, on_step: OnStep | None) -> Any:
        return sample_ddim(network, x, schedule, noise=noise, on_step=on_step)

    return Solver(
        name="ddim",
        timesteps=schedule.t.astype(np.float32),
        start_scale=1.0,
        first_input=1.0,
        noises=len(schedule) if schedule.sigma.any() else 0,
        steps=len(schedule),
        slots=1,
        table=ddim_table(schedule),
        run=run,
    )


def walk_forward(denoise: Callable[[Any], Any], x0: Any, noise: Any, schedule: DDIMSchedule, gammas: Any) -> Any:
    """Start noise derived from an image: DDIM run upwards, (B, C, H, W) at the schedule's first timestep.

    Upstream's ``fix_forward``. The only randomness is ``noise``, used in the first iteration; afterwards the noise is
    predicted by ``denoise``, which upstream calls without any timestep.
    """
    ascending = [0, *(int(t) for t in schedule.t[::-1])]
    x, eps = x0, noise
    for current, following in pairwise(ascending):
        if current > 0:
            eps = denoise(x)
            x0 = ((x - _root(1 - gammas[current]) * eps) / _root(gammas[current])).clip(-1.0, 1.0)
        x = _root(gammas[following]) * x0 + _root(1 - gammas[following]) * eps
    return x


def noise_image(x0: Any, noise: Any, gamma: Any) -> Any:
    """x0 noised in one shot: ``sqrt(gamma) x0 + sqrt(1 - gamma) noise``, upstream's ``q_sample``."""
    return _root(gamma) * x0 + _root(1 - gamma) * noise


def noise_reference(reference: Any, sketch: Any, noise: Any, schedule: DiffusionSchedule) -> Any:
    """Start noise of upstream's oldest test script: 0.9 reference + 0.1 sketch, noised to the middle timestep."""
    return noise_image(0.9 * reference + 0.1 * sketch, noise, schedule.gammas[schedule.timesteps // 2])


def ddpm_step(x: Any, eps: Any, schedule: DiffusionSchedule, t: int, *, eta: float, noise: Any) -> Any:
    """x at t - 1: one ancestral step (Ho et al., arXiv 2006.11239, algorithm 2), its noise scaled by eta.

    The last step, at t = 0, adds no noise.
    """
    table = {name: float(values[t]) for name, values in schedule.buffers.items()}
    x0 = (table["sqrt_reciprocal_gammas"] * x - table["sqrt_reciprocal_gammas_m1"] * eps).clip(-1.0, 1.0)
    x = table["posterior_mean_coef1"] * x0 + table["posterior_mean_coef2"] * x
    deviation = eta * math.exp(0.5 * table["posterior_log_variance"])
    return x if t == 0 else x + deviation * noise


def _root(value: Any) -> float:
    return float(value**0.5)

"""The k-diffusion path of ColorizeDiffusion's user interface: its samplers by name, each on the schedule it runs on.

Eta is 1 wherever a sampler has one. Source: arXiv 2401.01456; tellurion-kanata/colorizeDiffusion, commit c9bd9fb.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saishiki.runtime.samplers.callbacks import Denoise, DenoiseAt, Network, OnStep
from saishiki.runtime.samplers.dpm_fast import fast_orders, sample_dpm_fast
from saishiki.runtime.samplers.k_diffusion import (
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m_sde,
    sample_euler,
    sample_euler_ancestral,
)
from saishiki.runtime.samplers.linear_multistep import sample_lms
from saishiki.runtime.samplers.parameterisation import Parameterisation, denoise_in_turn, input_scale
from saishiki.runtime.samplers.protocol import Float32, Solver
from saishiki.runtime.samplers.sigmas import SPACINGS, sigmas_from_gammas, t_from_sigma, with_zero
from saishiki.runtime.samplers.tables import (
    Table,
    dpmpp_2m_sde_table,
    dpmpp_2m_table,
    dpmpp_3m_sde_table,
    euler_ancestral_table,
    euler_table,
)
from saishiki.runtime.samplers.two_evaluations import (
    sample_dpm2,
    sample_dpm2_ancestral,
    sample_dpmpp_2s_ancestral,
    sample_dpmpp_sde,
    sample_heun,
)

Levels = Sequence[float]
Walk = Callable[[DenoiseAt, Any, Levels, Any, OnStep | None], Any]
SigmaWalk = Callable[[DenoiseAt, Any, Any, OnStep | None], Any]


@dataclass(frozen=True)
class KSampler:
    """A sampler of the k-diffusion path.

    Args:
        walk: (denoise, x, sigmas, noise, on_step) to the image.
        automatic: the scheduler that ``Automatic`` stands for.
        draws: noises per step but the last.
        table: (sigmas, how) to the rows that walk as ``walk`` does.
        drops_last: whether it asks for one noise level more and leaves out the last above 0.
    """

    walk: Walk
    automatic: str
    draws: int = 0
    table: Callable[[Levels, Parameterisation], Table] | None = None
    drops_last: bool = False


def _in_turn(sample: Callable[..., Any]) -> Walk:
    return lambda denoise, x, sigmas, _, on_step: sample(denoise, x, sigmas, on_step=on_step)


def _in_turn_noisy(sample: Callable[..., Any]) -> Walk:
    return lambda denoise, x, sigmas, noise, on_step: sample(denoise, x, sigmas, noise=noise, on_step=on_step)


def _by_step(sample: Callable[..., Any]) -> Walk:
    return lambda denoise, x, sigmas, _, on_step: sample(_at(denoise, sigmas), x, sigmas, on_step=on_step)


def _by_step_noisy(sample: Callable[..., Any], **options: Any) -> Walk:
    def walk(denoise: DenoiseAt, x: Any, sigmas: Levels, noise: Any, on_step: OnStep | None) -> Any:
        return sample(_at(denoise, sigmas), x, sigmas, noise=noise, on_step=on_step, **options)

    return walk


def _at(denoise: DenoiseAt, sigmas: Levels) -> Denoise:
    return lambda x, k: denoise(x, float(sigmas[k]))


def _heun_table(sigmas: Levels, how: Parameterisation) -> Table:
    return dpmpp_2m_sde_table(sigmas, how, solver="heun")


K_SAMPLERS: Mapping[str, KSampler] = {
    "DPM++ 2M": KSampler(_by_step(sample_dpmpp_2m), "Karras", table=dpmpp_2m_table),
    "DPM++ 2M SDE": KSampler(_by_step_noisy(sample_dpmpp_2m_sde), "Exponential", 1, dpmpp_2m_sde_table),
    "DPM++ 2M SDE Heun": KSampler(_by_step_noisy(sample_dpmpp_2m_sde, solver="heun"), "Exponential", 1, _heun_table),
    "DPM++ 3M SDE": KSampler(
        _by_step_noisy(sample_dpmpp_3m_sde), "Exponential", 1, dpmpp_3m_sde_table, drops_last=True
    ),
    "DPM++ SDE": KSampler(_in_turn_noisy(sample_dpmpp_sde), "Karras", 2),
    "DPM++ 2S a": KSampler(_in_turn_noisy(sample_dpmpp_2s_ancestral), "Karras", 1),
    "DPM2": KSampler(_in_turn(sample_dpm2), "Karras", drops_last=True),
    "DPM2 a": KSampler(_in_turn_noisy(sample_dpm2_ancestral), "Karras", 1, drops_last=True),
    "Euler": KSampler(_by_step(sample_euler), "Uniform", table=euler_table),
    "Euler a": KSampler(_by_step_noisy(sample_euler_ancestral), "Uniform", 1, euler_ancestral_table),
    "Heun": KSampler(_in_turn(sample_heun), "Uniform"),
    "LMS": KSampler(_by_step(sample_lms), "Uniform"),
}
FAST = "DPM fast"


def k_sigmas(sampler: str, scheduler: str, steps: int, table: Float32) -> Float32:
    """(S + 1,) noise levels of a run, the last one 0; ``scheduler`` may be ``Automatic``."""
    kind = K_SAMPLERS[sampler]
    spacing = SPACINGS[kind.automatic if scheduler == "Automatic" else scheduler]
    if not kind.drops_last:
        return with_zero(spacing(table, steps))
    return with_zero(spacing(table, steps + 1)[:-1])


def k_solver(sampler: str, scheduler: str, steps: int, gammas: Float32, how: Parameterisation) -> Solver:
    """A sampler with its schedule, in sigma space. ``DPM fast`` has a schedule of its own, whatever the scheduler.

    Args:
        steps: at least 1; for ``DPM fast`` the evaluations of the network.
        gammas: (T,) fp32, ``alphas_cumprod`` of the checkpoint.
    """
    table = sigmas_from_gammas(gammas)
    if sampler == FAST:
        return fast_solver(steps, table, how)
    kind, sigmas = K_SAMPLERS[sampler], [float(sigma) for sigma in k_sigmas(sampler, scheduler, steps, table)]

    def walk(denoise: DenoiseAt, x: Any, noise: Any, on_step: OnStep | None) -> Any:
        return kind.walk(denoise, x, sigmas, noise, on_step)

    rows = None if kind.table is None else kind.table(sigmas, how)
    timesteps = t_from_sigma(evaluated_sigmas(walk), table)
    solver = sigma_solver(sampler, walk, how, timesteps, start=sigmas[0])
    return replace(solver, noises=kind.draws * (steps - 1), steps=steps, table=rows)


def fast_solver(evaluations: int, table: Float32, how: Parameterisation) -> Solver:
    """DPM-Solver-fast between the ends of a table of noise levels."""
    ends, steps = (float(table[-1]), float(table[0])), len(fast_orders(evaluations))

    def walk(denoise: DenoiseAt, x: Any, noise: Any, on_step: OnStep | None) -> Any:
        return sample_dpm_fast(denoise, x, ends, evaluations, noise=noise, on_step=on_step)

    timesteps = t_from_sigma(evaluated_sigmas(walk), table)
    return replace(sigma_solver(FAST, walk, how, timesteps, start=ends[0]), noises=steps, steps=steps)


def sigma_solver(name: str, walk: SigmaWalk, how: Parameterisation, timesteps: Float32, *, start: float) -> Solver:
    """A solver in sigma space, of one step per evaluation and without noise: x begins at ``noise * start``."""

    def run(network: Network, x: Any, noise: Any, on_step: OnStep | None) -> Any:
        return walk(denoise_in_turn(network, how), x, noise, on_step)

    return Solver(
        name=name,
        timesteps=timesteps,
        start_scale=start,
        first_input=input_scale(start),
        noises=0,
        steps=len(timesteps),
        slots=how.slots,
        table=None,
        run=run,
    )


def evaluated_sigmas(walk: SigmaWalk) -> Float32:
    """(E,) fp32: the noise level of every evaluation of a walk, in order: they do not depend on what it walks over."""
    seen: list[float] = []

    def denoise(x: float, sigma: float) -> float:
        seen.append(sigma)
        return x

    walk(denoise, 0.0, defaultdict(float), None)
    return np.array(seen, np.float32)

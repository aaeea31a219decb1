"""The diffusers path of ColorizeDiffusion's user interface: four of diffusers' schedulers, as it sets them up.

All space their timesteps by ``leading`` with offset 1: the highest noise levels are never visited. Only diffuser_dpm
and diffuser_lms listen to the scheduler, and of all schedulers only to Karras. Source: huggingface/diffusers 0.31,
``scheduling_{dpmsolver_multistep,ddim,pndm,lms_discrete}.py``; tellurion-kanata/colorizeDiffusion, commit c9bd9fb.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from saishiki.runtime.samplers.callbacks import DenoiseAt, Network, OnStep
from saishiki.runtime.samplers.ddim import sample_ddim_gammas
from saishiki.runtime.samplers.k_diffusion import sample_dpmpp_2m
from saishiki.runtime.samplers.k_samplers import SigmaWalk, sigma_solver
from saishiki.runtime.samplers.linear_multistep import sample_lms
from saishiki.runtime.samplers.parameterisation import Parameterisation
from saishiki.runtime.samplers.pndm import pndm_schedule, sample_pndm
from saishiki.runtime.samplers.protocol import Float32, Solver
from saishiki.runtime.samplers.sigmas import karras, sigmas_from_gammas, t_from_sigma, with_zero
from saishiki.runtime.samplers.tables import ddim_gammas_table, dpmpp_2m_table
from saishiki.runtime.schedule import ddim_timesteps

Levels = tuple[Float32, Float32]
"""(S,) timesteps and (S + 1,) noise levels, the last one 0."""


def dpm_levels(scheduler: str, steps: int, table: Float32) -> Levels:
    """diffuser_dpm's: the S highest of S + 1 leading timesteps, or by Karras over the table, at whole timesteps."""
    if scheduler == "Karras":
        sigmas = karras(table, steps)
        return np.round(t_from_sigma(sigmas, table)), with_zero(sigmas)
    t = ddim_timesteps(len(table), steps + 1)[0][:-1]
    return t.astype(np.float32), with_zero(table[t])


def lms_levels(scheduler: str, steps: int, table: Float32) -> Levels:
    """diffuser_lms's: S leading timesteps, or by Karras between their ends, at timesteps that are not rounded."""
    t = ddim_timesteps(len(table), steps)[0]
    if scheduler == "Karras":
        sigmas = karras(table[t[::-1]], steps)
        return t_from_sigma(sigmas, table), with_zero(sigmas)
    return t.astype(np.float32), with_zero(table[t])


def dpm_solver(scheduler: str, steps: int, gammas: Float32, how: Parameterisation) -> Solver:
    """diffuser_dpm, the default: multistep DPM-Solver++ of second order. Its x is ours times the input scale."""
    timesteps, levels = dpm_levels(scheduler, steps, sigmas_from_gammas(gammas))
    sigmas = [float(sigma) for sigma in levels]

    def walk(denoise: DenoiseAt, x: Any, noise: Any, on_step: OnStep | None) -> Any:
        return sample_dpmpp_2m(lambda x, k: denoise(x, sigmas[k]), x, sigmas, on_step=on_step)

    return replace(_from_unit_noise("diffuser_dpm", walk, how, timesteps, sigmas[0]), table=dpmpp_2m_table(sigmas, how))


def lms_solver(scheduler: str, steps: int, gammas: Float32, how: Parameterisation) -> Solver:
    """diffuser_lms: the linear multistep solver."""
    timesteps, levels = lms_levels(scheduler, steps, sigmas_from_gammas(gammas))
    sigmas = [float(sigma) for sigma in levels]

    def walk(denoise: DenoiseAt, x: Any, noise: Any, on_step: OnStep | None) -> Any:
        return sample_lms(lambda x, k: denoise(x, sigmas[k]), x, sigmas, on_step=on_step)

    return _from_unit_noise("diffuser_lms", walk, how, timesteps, sigmas[0])


def _from_unit_noise(name: str, walk: SigmaWalk, how: Parameterisation, timesteps: Float32, sigma: float) -> Solver:
    """A solver in sigma space whose first input is the noise itself."""
    return replace(sigma_solver(name, walk, how, timesteps, start=sigma), start_scale=math.sqrt(sigma**2 + 1))


def ddim_eta_0_solver(scheduler: str, steps: int, gammas: Float32, how: Parameterisation) -> Solver:
    """diffuser_ddim: DDIM without noise, to gamma 1 in its last step; the scheduler plays no part."""
    t = ddim_timesteps(len(gammas), steps)[0]
    levels = [*(float(gamma) for gamma in gammas[t]), 1.0]

    def run(network: Network, x: Any, noise: Any, on_step: OnStep | None) -> Any:
        return sample_ddim_gammas(network, x, levels, how, on_step=on_step)

    return _unscaled("diffuser_ddim", run, t.astype(np.float32), steps, how, table=ddim_gammas_table(levels, how))


def pndm_solver(scheduler: str, steps: int, gammas: Float32, how: Parameterisation) -> Solver:
    """diffuser_pndm: :func:`.pndm.sample_pndm`; the scheduler plays no part."""
    schedule = pndm_schedule(len(gammas), steps)
    table = [float(gamma) for gamma in gammas]

    def run(network: Network, x: Any, noise: Any, on_step: OnStep | None) -> Any:
        return sample_pndm(network, x, table, schedule, how, on_step=on_step)

    return _unscaled("diffuser_pndm", run, np.array(schedule.timesteps, np.float32), steps, how, table=None)


def _unscaled(
    name: str, run: Callable[..., Any], timesteps: Float32, steps: int, how: Parameterisation, *, table: Any
) -> Solver:
    """A solver whose x is of variance 1 and the network's input."""
    return Solver(
        name=name,
        timesteps=timesteps,
        start_scale=1.0,
        first_input=1.0,
        noises=0,
        steps=steps,
        slots=how.slots,
        table=table,
        run=run,
    )


DIFFUSERS_SOLVERS: Mapping[str, Callable[[str, int, Float32, Parameterisation], Solver]] = {
    "diffuser_dpm": dpm_solver,
    "diffuser_ddim": ddim_eta_0_solver,
    "diffuser_pndm": pndm_solver,
    "diffuser_lms": lms_solver,
}

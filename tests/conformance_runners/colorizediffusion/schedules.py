"""Runs the schedule cases of ColorizeDiffusion: noise levels and timesteps of both paths of its user interface."""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from safetensors.numpy import load_file

from saishiki.runtime.samplers import Parameterisation, sigma_from_t, sigmas_from_gammas, solver_for, t_from_sigma
from saishiki.runtime.samplers.diffusers_samplers import dpm_levels, lms_levels
from saishiki.runtime.samplers.k_samplers import k_sigmas
from saishiki.runtime.samplers.protocol import Float32
from tests.conformance import FOLDER, Case

Arrays = Mapping[str, np.ndarray]
LEVELS = {"dpm": dpm_levels, "lms": lms_levels}


@cache
def stored_gammas(family: str) -> Float32:
    """(T,) fp32 ``alphas_cumprod`` of the family's tiny checkpoint."""
    return load_file(FOLDER / family / "tiny.safetensors")["alphas_cumprod"]


def run_schedule(case: Case) -> Arrays:
    """Every array of a case, by its name: ``sampler|scheduler|steps``, with the kind of array behind it."""
    run = run_k_schedule if "alphas_cumprod" in case.inputs else run_diffusers_schedule
    return {name: run(case, name) for name in case.outputs}


def run_k_schedule(case: Case, name: str) -> Float32:
    table = sigmas_from_gammas(case.inputs["alphas_cumprod"])
    if name == "sigma_to_t":
        return t_from_sigma(case.inputs["sigma"], table)
    if name == "t_to_sigma":
        return sigma_from_t(case.inputs["t"], table)
    sampler, scheduler, steps = name.replace("_", " ").split("|")
    return k_sigmas(sampler, scheduler, int(steps), table)


def run_diffusers_schedule(case: Case, name: str) -> Float32:
    sampler, scheduler, steps, kind = name.split("|")
    gammas = stored_gammas(case.family)
    if kind == "sigmas":
        return LEVELS[sampler](scheduler, int(steps), sigmas_from_gammas(gammas))[1]
    how = Parameterisation("v")
    solver = solver_for(f"diffuser_{sampler}", scheduler=scheduler, steps=int(steps), alphas_cumprod=gammas, how=how)
    # diffusers' DPM-Solver++ keeps x at variance 1, where ours is in sigma space.
    start = solver.start_scale * (solver.first_input if sampler == "dpm" else 1.0)
    return {"timesteps": solver.timesteps, "init_noise_sigma": np.float32(start)}[kind]  # type: ignore[return-value]


SCHEDULES: Mapping[str, Callable[[Case], Arrays]] = {"schedule": run_schedule}

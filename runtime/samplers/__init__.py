"""Samplers as plain functions over arrays, and the same solvers as tables for a device.

numpy arrays and torch tensors both work. Noise is always an argument, so the same numbers come out on every backend.
"""

from saishiki.runtime.samplers.animediffusion import (
    ddim_solver,
    ddim_step,
    ddpm_step,
    noise_image,
    noise_reference,
    sample_ddim,
    walk_forward,
)
from saishiki.runtime.samplers.callbacks import Denoise, DenoiseAt, Network, OnStep
from saishiki.runtime.samplers.ddim import sample_ddim_gammas
from saishiki.runtime.samplers.dpm_fast import sample_dpm_fast
from saishiki.runtime.samplers.k_diffusion import (
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m_sde,
    sample_euler,
    sample_euler_ancestral,
)
from saishiki.runtime.samplers.linear_multistep import sample_lms
from saishiki.runtime.samplers.parameterisation import (
    Parameterisation,
    denoise_at_sigmas,
    denoise_in_turn,
    denoised_from_prediction,
    eps_from_prediction,
    guide,
    input_scale,
    x0_from_prediction,
)
from saishiki.runtime.samplers.pndm import sample_pndm
from saishiki.runtime.samplers.protocol import Solver
from saishiki.runtime.samplers.sigmas import sigma_from_t, sigmas_from_gammas, t_from_sigma
from saishiki.runtime.samplers.solver import SAMPLERS, SCHEDULERS, known_sampler, known_scheduler, solver_for
from saishiki.runtime.samplers.tables import (
    COLUMNS,
    ddim_gammas_table,
    ddim_table,
    dpmpp_2m_sde_table,
    dpmpp_2m_table,
    dpmpp_3m_sde_table,
    euler_ancestral_table,
    euler_table,
    history_slots,
    needs_noise,
    table_step,
)
from saishiki.runtime.samplers.two_evaluations import (
    sample_dpm2,
    sample_dpm2_ancestral,
    sample_dpmpp_2s_ancestral,
    sample_dpmpp_sde,
    sample_heun,
)

__all__ = [
    "COLUMNS",
    "SAMPLERS",
    "SCHEDULERS",
    "Denoise",
    "DenoiseAt",
    "Network",
    "OnStep",
    "Parameterisation",
    "Solver",
    "ddim_gammas_table",
    "ddim_solver",
    "ddim_step",
    "ddim_table",
    "ddpm_step",
    "denoise_at_sigmas",
    "denoise_in_turn",
    "denoised_from_prediction",
    "dpmpp_2m_sde_table",
    "dpmpp_2m_table",
    "dpmpp_3m_sde_table",
    "eps_from_prediction",
    "euler_ancestral_table",
    "euler_table",
    "guide",
    "history_slots",
    "input_scale",
    "known_sampler",
    "known_scheduler",
    "needs_noise",
    "noise_image",
    "noise_reference",
    "sample_ddim",
    "sample_ddim_gammas",
    "sample_dpm2",
    "sample_dpm2_ancestral",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lms",
    "sample_pndm",
    "sigma_from_t",
    "sigmas_from_gammas",
    "solver_for",
    "t_from_sigma",
    "table_step",
    "walk_forward",
    "x0_from_prediction",
]

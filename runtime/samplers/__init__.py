"""Samplers as plain functions over arrays, and the same solvers as tables for a device.

numpy arrays and torch tensors both work. Noise is always an argument, so the same numbers come out on every backend.
"""

from saishiki.runtime.samplers.animediffusion import (
    ddim_step,
    ddpm_step,
    noise_image,
    noise_reference,
    sample_ddim,
    walk_forward,
)
from saishiki.runtime.samplers.callbacks import Denoise, Network, OnStep
from saishiki.runtime.samplers.ddim import sample_ddim_gammas
from saishiki.runtime.samplers.k_diffusion import (
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m_sde,
    sample_euler,
    sample_euler_ancestral,
)
from saishiki.runtime.samplers.parameterisation import (
    Parameterisation,
    denoise_at_sigmas,
    denoised_from_prediction,
    eps_from_prediction,
    guide,
    input_scale,
    repeat_slots,
    x0_from_prediction,
)
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

__all__ = [
    "COLUMNS",
    "Denoise",
    "Network",
    "OnStep",
    "Parameterisation",
    "ddim_gammas_table",
    "ddim_step",
    "ddim_table",
    "ddpm_step",
    "denoise_at_sigmas",
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
    "needs_noise",
    "noise_image",
    "noise_reference",
    "repeat_slots",
    "sample_ddim",
    "sample_ddim_gammas",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_3m_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "table_step",
    "walk_forward",
    "x0_from_prediction",
]

"""What training adds to AnimeDiffusion: the losses of its two phases, and DDIM and the walk on torch tensors.

The samplers are those of inference (``saishiki.runtime.samplers``); on torch tensors they carry gradients.
"""

from dataclasses import dataclass

import torch
from dataset import Batch
from torch import Tensor

from saishiki.models.animediffusion import AnimeDiffusion
from saishiki.runtime.samplers import sample_ddim, walk_forward
from saishiki.runtime.schedule import DDIMSchedule, DiffusionSchedule, ddim_schedule

BETAS = {"linear_start": 1e-6, "linear_end": 1e-2}
STEPS = 10
LARGEST_WEIGHT = 60.0
FIRST_TIMESTEP = 901  # of a 10-step DDIM run
LOWEST_FADED = 201
FADED_SHARE = 0.6


@dataclass(frozen=True)
class Trajectory:
    """What a DDIM run gives: the image (B, 3, H, W), and every step's clamped guess of it, (S, B, 3, H, W)."""

    image: Tensor
    guesses: Tensor


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """(B,) int64: a third anywhere in 0..999, the rest among the ten that a 10-step DDIM run visits, its first most."""
    anywhere = torch.randint(1000, (count,), generator=generator)
    visited = FIRST_TIMESTEP - 100 * (torch.randint(14, (count,), generator=generator) - 4).clamp(min=0)
    return torch.where(torch.rand(count, generator=generator) < 0.33, anywhere, visited)


def fade(target: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    """What a sampler may have in place of target (B, 3, H, W) at t (B,): pale, miscoloured or, from 901 up, nothing.

    Sampling starts at t = 901 from pure noise, whereas noised images still carry 13 % of their amplitude there: enough
    to read every flat colour, so that the network would not learn to look at the reference. Steps below 201 stay as
    they are.
    """
    wrong = target.roll(1, dims=1)  # the same image with its colour channels exchanged
    decoy = wrong * torch.randint(2, (len(target), 1, 1, 1), generator=generator)
    strength = torch.rand((len(target), 1, 1, 1), generator=generator)
    faded = strength * target + (1.0 - strength) * decoy
    t = t[:, None, None, None]
    return torch.where(t < LOWEST_FADED, target, torch.where(t >= FIRST_TIMESTEP, torch.zeros_like(target), faded))


def noise_loss(network: AnimeDiffusion, batch: Batch, generator: torch.Generator, *, timed: bool) -> Tensor:
    """Phase 1: the mean square error of the predicted noise, weighted max(1, 1 / SNR).

    The weight makes it the larger of the noise's and the image's error ("truncated SNR", Salimans and Ho, ICLR 2022):
    plain noise error hardly sees the colours, which are decided where the SNR is low. Part of the images are faded;
    the noise to predict is then the one that leads back to the target, and the weight is 1 / SNR throughout. ``timed``
    False leaves the time out, as the walk of phase 2 does.
    """
    target = batch.target
    t = draw_timesteps(len(target), generator)
    gamma = network.gammas[t][:, None, None, None]
    fades = (torch.rand(len(t), generator=generator) < FADED_SHARE * timed) & (t >= LOWEST_FADED)
    fades = fades[:, None, None, None]
    signal = torch.where(fades, fade(target, t, generator), target)
    noisy = gamma.sqrt() * signal + (1.0 - gamma).sqrt() * torch.randn(target.shape, generator=generator)
    noise = (noisy - gamma.sqrt() * target) / (1.0 - gamma).sqrt()
    predicted = predict_noise(network, noisy, batch.condition, t if timed else None)
    odds = (1.0 - gamma) / gamma
    weight = torch.where(fades, odds, odds.clamp(min=1.0)).clamp(max=LARGEST_WEIGHT)
    return (weight * (predicted - noise).square()).mean()


def image_loss(trajectory: Trajectory, target: Tensor) -> Tensor:
    """Phase 2: the mean square error of the sampled image, plus that of every step's guess of it."""
    return (trajectory.image - target).square().mean() + (trajectory.guesses - target).square().mean()


def ddim_tables(network: AnimeDiffusion, *, eta: float) -> DDIMSchedule:
    """The ten-step tables for the network's own schedule."""
    buffers = {name: buffer.numpy() for name, buffer in network.named_buffers()}
    return ddim_schedule(DiffusionSchedule(buffers), steps=STEPS, eta=eta)


def run_ddim(
    network: AnimeDiffusion, x: Tensor, condition: Tensor, generator: torch.Generator, *, eta: float
) -> Trajectory:
    """Ten DDIM steps from x (B, 3, H, W) at t = 901, under condition (B, 4, H, W); gradients flow through them all."""
    tables = ddim_tables(network, eta=eta)
    guesses: list[Tensor] = []

    def denoise(x: Tensor, k: int) -> Tensor:
        eps = predict_noise(network, x, condition, torch.full((len(x),), int(tables.t[k])))
        guess = (x - float(tables.noise_level[k]) * eps) / float(tables.signal_level[k])
        guesses.append(guess.clip(-1.0, 1.0))
        return eps

    noise = torch.randn((STEPS, *x.shape), generator=generator) if eta > 0.0 else None
    return Trajectory(image=sample_ddim(denoise, x, tables, noise=noise), guesses=torch.stack(guesses))


@torch.no_grad()
def walk_from_truth(network: AnimeDiffusion, batch: Batch, generator: torch.Generator) -> Tensor:
    """(B, 3, H, W) at t = 901: the target carried up the DDIM timesteps by the network, called without a time."""
    noise = torch.randn(batch.target.shape, generator=generator)

    def denoise(x: Tensor) -> Tensor:
        return predict_noise(network, x, batch.condition, None)

    start: Tensor = walk_forward(denoise, batch.target, noise, ddim_tables(network, eta=0.0), network.gammas)
    return start


def predict_noise(network: AnimeDiffusion, noisy: Tensor, condition: Tensor, t: Tensor | None) -> Tensor:
    """The network's fp32 noise in noisy (B, 3, H, W) under condition (B, 4, H, W), at t (B,) or at no stated time."""
    return network.denoise_fn(torch.cat([noisy, condition], dim=1), t).float()

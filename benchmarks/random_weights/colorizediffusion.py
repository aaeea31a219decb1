"""ColorizeDiffusion with random weights: a checkpoint in the published layout, at the published or a tiny size.

Weights are fp16 and the schedule fp32. The metadata state what no tensor shows, and that v is predicted: a network that
was never trained cannot be measured for it.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from random_weights.safetensors_file import write_safetensors
from random_weights.values import seeded_values
from saishiki.models.colorizediffusion import CONFIGS, ColorizeDiffusionConfig, ImageEncoderConfig, VAEConfig
from saishiki.models.colorizediffusion.network import SCHEDULE_BUFFERS, ColorizeDiffusion

Buffers = Mapping[str, Tensor]

LINEAR_START, LINEAR_END = 0.00085, 0.012
_TINY_WARP = (128,) * 8 + (64,) * 4


def tiny_config(generation: str) -> ColorizeDiffusionConfig:
    """The published structure with narrow layers; 16 tokens, of pictures of 28x28."""
    published = CONFIGS[generation]
    return replace(
        published,
        model_channels=64,
        channel_mult=(1, 1, 2, 2),
        head_channels=16,
        context_dim=32,
        tokens=16,
        cluster_layers=None if published.cluster_layers is None else 2,
        warp_widths=None if published.warp_widths is None else _TINY_WARP,
        vae=VAEConfig(32, (1, 1, 2, 2), 1, published.vae.latent_channels, published.vae.scale_factor),
        image_encoder=ImageEncoderConfig(28, 7, 32, 2, 16, 32),
    )


def write_random_checkpoint(
    path: Path, config: ColorizeDiffusionConfig, *, image_encoder: bool = False, seed: int = 0
) -> None:
    """Writes one with at most one tensor in memory; no two of its tensors are alike.

    Args:
        image_encoder: whether the file holds it; published ones leave it out.
    """
    layout = checkpoint_layout(config, image_encoder=image_encoder)
    buffers, draw = scaled_linear_schedule(config.timesteps), seeded_values(seed)

    def value_of(name: str) -> Tensor:
        return buffers[name] if name in buffers else draw(name, layout[name].shape).half()

    write_safetensors(path, layout, value_of, metadata=stated_by(config))


def checkpoint_layout(config: ColorizeDiffusionConfig, *, image_encoder: bool) -> dict[str, Tensor]:
    """Every tensor of a checkpoint on the meta device, by its published name."""
    with torch.device("meta"):
        state = ColorizeDiffusion(config, image_encoder=image_encoder).state_dict()
    return {name: tensor if name in SCHEDULE_BUFFERS else tensor.half() for name, tensor in state.items()}


def stated_by(config: ColorizeDiffusionConfig) -> dict[str, str]:
    """Metadata with what the shapes leave open."""
    return {
        "prediction_type": "v",
        "num_head_channels": json.dumps(config.head_channels),
        "vae_scale_factor": json.dumps(config.vae.scale_factor),
        "clip": json.dumps({"head_width": config.image_encoder.head_width}),
    }


def scaled_linear_schedule(timesteps: int) -> dict[str, Tensor]:
    """The twelve (T,) fp32 tables of the published schedule, by name.

    "Denoising Diffusion Probabilistic Models", Ho et al., arXiv 2006.11239, section 2, with betas whose roots are
    evenly spaced. The posterior's variance is clipped at 1e-20 where its log is taken, since the first is 0.
    """
    betas = torch.linspace(LINEAR_START**0.5, LINEAR_END**0.5, timesteps, dtype=torch.float64) ** 2
    gammas = torch.cumprod(1 - betas, dim=0)
    previous = torch.cat([gammas.new_ones(1), gammas[:-1]])
    variance = betas * (1 - previous) / (1 - gammas)
    tables = (
        betas,
        gammas,
        previous,
        gammas.sqrt(),
        (1 - gammas).sqrt(),
        (1 - gammas).log(),
        (1 / gammas).sqrt(),
        (1 / gammas - 1).sqrt(),
        variance,
        variance.clamp(min=1e-20).log(),
        betas * previous.sqrt() / (1 - gammas),
        (1 - previous) * (1 - betas).sqrt() / (1 - gammas),
    )
    return dict(zip(SCHEDULE_BUFFERS, (table.float() for table in tables), strict=True))

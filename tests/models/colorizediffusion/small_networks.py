"""ColorizeDiffusion of the smallest kind: the published structure, narrow, with random weights."""

from dataclasses import replace
from functools import cache
from typing import TypeVar

import torch
from torch import nn

from saishiki.models.colorizediffusion import CONFIGS, ColorizeDiffusionConfig, ImageEncoderConfig, UNet, VAEConfig
from saishiki.runtime.pipelines.colorizediffusion import Generation

Network = TypeVar("Network", bound=nn.Module)

# With one channel per group the norms would cancel what the time adds; 64 make it two.
WIDTH, MULT, HEAD, CONTEXT, TOKENS = 64, (1, 1, 1, 2), 32, 24, 6
INNER = 64
"""Width of the warp modules' queries: one head."""


def small_config(generation: Generation) -> ColorizeDiffusionConfig:
    """The published config of a generation, narrow."""
    published = CONFIGS[generation]
    return replace(
        published,
        model_channels=WIDTH,
        channel_mult=MULT,
        head_channels=HEAD,
        context_dim=CONTEXT,
        tokens=TOKENS,
        warp_widths=None if published.warp_widths is None else (INNER,) * 12,
        vae=VAEConfig(32, (1, 1, 1, 1), 1, 4, 0.18215),
        image_encoder=ImageEncoderConfig(28, 14, 32, 1, 16, CONTEXT),
    )


def randomized(network: Network, seed: int = 0) -> Network:
    """The network with every tensor random, gains and biases of norms too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, parameter in network.named_parameters():
            fan_in = parameter[0].numel()
            gain = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            scale = 0.2 if parameter.ndim == 1 else fan_in**-0.5
            parameter.data = torch.randn_like(parameter) * scale + gain
    return network.eval().requires_grad_(False)


@cache
def small_unet(generation: Generation) -> UNet:
    """The same network at every call; not to be changed."""
    return randomized(UNet(small_config(generation)))

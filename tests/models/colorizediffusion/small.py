"""ColorizeDiffusion networks of the smallest kind, and checkpoints of them."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from saishiki.models.colorizediffusion import ColorizeDiffusionConfig, ImageEncoderConfig, VAEConfig
from saishiki.models.colorizediffusion.network import ColorizeDiffusion

GENERATIONS = ("v1", "v1.5", "v2")

_SHARED: dict[str, Any] = {
    "model_channels": 32,
    "channel_mult": (1, 2, 2, 2),
    "num_res_blocks": 2,
    "head_channels": 16,
    "context_dim": 64,
    "tokens": 4,
    "lora_fg": None,
    "lora_bg": None,
    "cluster_layers": None,
    "threshold_width": None,
    "size_width": None,
    "warp_widths": None,
    "vae": VAEConfig(32, (1, 1, 1, 1), 1, 4, 0.18215),
    "image_encoder": ImageEncoderConfig(28, 14, 32, 1, 16, 64),
    "timesteps": 20,
}
_OF_GENERATION: dict[str, dict[str, Any]] = {
    "v1": {},
    "v1.5": {"lora_fg": 2, "lora_bg": 8, "cluster_layers": 2, "threshold_width": 16},
    "v2": {"lora_fg": 2, "lora_bg": 3, "size_width": 16, "warp_widths": (64,) * 12},
}


def small_config(generation: str, **changes: Any) -> ColorizeDiffusionConfig:
    """Levels of 32 and three times 64 channels: groups of one channel alone would cancel the time."""
    return ColorizeDiffusionConfig(**({"generation": generation} | _SHARED | _OF_GENERATION[generation] | changes))


@cache
def small_network(config: ColorizeDiffusionConfig) -> ColorizeDiffusion:
    """The network with random weights, no branch of it silent; do not change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ColorizeDiffusion(config)
        for name, tensor in network.state_dict(keep_vars=True).items():
            if tensor.ndim <= 1:
                tensor.data = torch.randn_like(tensor) * 0.1 + (1.0 if name.endswith("weight") else 0.0)
            elif name.startswith("control_encoder.") or "emb" in name:
                # Fresh layers would leave next to nothing of a sketch and of the time.
                tensor.data *= 3
        network.get_buffer("alphas_cumprod").copy_(torch.linspace(0.999, 0.005, config.timesteps))
    return network.eval().requires_grad_(False)


def small_state(config: ColorizeDiffusionConfig) -> dict[str, Tensor]:
    """A copy of its state under the published names, to be changed at will."""
    return {key: tensor.clone() for key, tensor in small_network(config).state_dict().items()}


def stated_by(config: ColorizeDiffusionConfig) -> dict[str, str]:
    """The metadata of a checkpoint that leaves nothing open but what it predicts."""
    stated = {
        "num_head_channels": config.head_channels,
        "clip": asdict(config.image_encoder),
        "vae_scale_factor": config.vae.scale_factor,
    }
    return {name: json.dumps(value) for name, value in stated.items()}


def save(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Writes a state as .safetensors."""
    save_file(state, path, metadata=metadata)
    return path


def without(state: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """The state but for what begins with any of these."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}

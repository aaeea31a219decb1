"""The shipped checkpoint's network, and how it is written: fp16 weights, fp32 schedule, provenance in the metadata."""

import json
from pathlib import Path

import torch
from diffusion import BETAS
from safetensors.torch import save_file

from saishiki.models.animediffusion import AnimeDiffusion, AnimeDiffusionConfig
from saishiki.runtime.schedule import linear_betas

TRAINING_SIZE_PX = 64
CONFIG = AnimeDiffusionConfig(
    channel_in=7,
    channel_out=3,
    channel_base=64,
    n_res_blocks=1,
    channel_mult=(1, 2, 2),
    attention_head=4,
    cbam=False,
    timesteps=1000,
)
LICENCE = "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)"
ATTRIBUTION = (
    "Trained on renderings of 'Adventurer' by Lisa Wischofsky "
    "(https://www.figma.com/community/file/1184595184137881796) and of 'Avatar Illustration System' by Micah Lanier "
    "(https://www.figma.com/community/file/829741575478342595), both CC BY 4.0, through DiceBear 9.4.3; "
    "parts recombined, recoloured and rendered at 64 px."
)
RECIPE = "examples/faces/README.md of Saishiki: AnimeDiffusion's two phases (arXiv 2303.11137), from random weights"


def build_network() -> AnimeDiffusion:
    """The network with random weights and the published schedule."""
    network = AnimeDiffusion(CONFIG)
    network.set_schedule(torch.from_numpy(linear_betas(CONFIG.timesteps, BETAS["linear_start"], BETAS["linear_end"])))
    return network


def published_config() -> dict[str, object]:
    """The config in the upstream project's own JSON layout."""
    unet = {name: getattr(CONFIG, name) for name in ("channel_in", "channel_out", "channel_base", "n_res_blocks")}
    unet |= {"channel_mult": list(CONFIG.channel_mult), "attention_head": CONFIG.attention_head}
    return {"time_step": CONFIG.timesteps, "betas": BETAS, "unet": unet | {"cbam": CONFIG.cbam, "dropout": 0}}


def export(network: AnimeDiffusion, path: Path) -> None:
    """Writes the network in the published key layout: ``denoise_fn.*`` fp16, the seven schedule buffers fp32."""
    tensors = {
        name: (tensor.half() if name.startswith("denoise_fn.") else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    metadata = {
        "config": json.dumps(published_config()),
        "licence": LICENCE,
        "attribution": ATTRIBUTION,
        "recipe": RECIPE,
        "training_size": str(TRAINING_SIZE_PX),
    }
    save_file(tensors, path, metadata=metadata)

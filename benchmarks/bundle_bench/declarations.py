"""The bundles that are benchmarked, one declaration each, and on what; a model family joins by adding its own.

``FULL`` are measured, ``SMOKE`` are tiny and show that all of it works: every family is in both.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from random_weights.colorizediffusion import tiny_config, write_random_checkpoint
from safetensors.torch import save_file

from saishiki.models.animediffusion import AnimeDiffusion, AnimeDiffusionConfig
from saishiki.models.colorizediffusion import CONFIGS, ColorizeDiffusionConfig
from saishiki.runtime.schedule import linear_betas

FACES = Path(__file__).parents[2] / "examples" / "faces" / "faces.safetensors"
TINY_ANIMEDIFFUSION = AnimeDiffusionConfig(7, 3, 32, 1, (1, 1), 4, False, 1000)


@dataclass(frozen=True)
class Declaration:
    """A checkpoint and how it is exported.

    Args:
        checkpoint: gives its path; where it has to be written first, into a folder.
        modules: of its bundle, all of them; a bundle with others is an error.
        batch: pictures in the largest batch.
        options: of ``export-engines``, beyond size, batch and targets.
    """

    name: str
    checkpoint: Callable[[Path], Path]
    modules: tuple[str, ...]
    size_px: int
    batch: int
    options: tuple[str, ...] = ()


def tiny_animediffusion(folder: Path) -> Path:
    """An AnimeDiffusion with seeded random weights in the published layout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AnimeDiffusion(TINY_ANIMEDIFFUSION)
    network.set_schedule(torch.from_numpy(linear_betas(TINY_ANIMEDIFFUSION.timesteps, 1e-6, 1e-2)))
    path = folder / "tiny.safetensors"
    save_file(network.state_dict(), path, metadata={"config": json.dumps({"unet": asdict(TINY_ANIMEDIFFUSION)})})
    return path


def random_colorizediffusion(config: ColorizeDiffusionConfig) -> Callable[[Path], Path]:
    """A ColorizeDiffusion of that config with seeded random weights, image encoder included."""

    def write(folder: Path) -> Path:
        path = folder / "random.safetensors"
        write_random_checkpoint(path, config, image_encoder=True)
        return path

    return write


_ANIMEDIFFUSION = ("time_projection", "denoiser")
_COLORIZEDIFFUSION = ("image_encoder", "sketch_encoder", "vae_decoder", "time_projection")
_REGIONS = ("context_projector_fg", "context_projector_bg")
_BACKGROUND_AND_STYLE = ("vae_encoder", "background_encoder", "warp_projector", "style_encoder", "style_projector")

FULL = (
    Declaration("AnimeDiffusion faces 64x64", lambda _: FACES, _ANIMEDIFFUSION, 64, 2),
    Declaration(
        "ColorizeDiffusion v2 full 512x512",
        random_colorizediffusion(CONFIGS["v2"]),
        (*_COLORIZEDIFFUSION, *_REGIONS, *_BACKGROUND_AND_STYLE, "denoiser_split_fg_bg_warp_reference"),
        512,
        2,
        ("--modes", "full", "--precision", "fp16"),
    ),
)
SMOKE = (
    Declaration("tiny AnimeDiffusion 32x32", tiny_animediffusion, _ANIMEDIFFUSION, 32, 2),
    Declaration(
        "tiny ColorizeDiffusion v1 128x128",
        random_colorizediffusion(tiny_config("v1")),
        (*_COLORIZEDIFFUSION, "context_projector", "denoiser_vanilla_reference"),
        128,
        2,
        ("--modes", "vanilla"),
    ),
)

RUNNERS = ("onnxruntime:cpu:fp32", "onnxruntime:cuda:fp16", "tensorrt-rtx:cuda:fp16", "tensorrt:cuda:fp16")
"""As for ``saishiki bench --backends``. What does not run here is skipped; a smoke run takes the first."""

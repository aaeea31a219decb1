"""The bundles that are benchmarked, one declaration each, and on what; a model family joins by adding its own.

``FULL`` are measured, ``SMOKE`` are tiny and show that all of it works: one for each family in both.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from saishiki.models.animediffusion import AnimeDiffusion, AnimeDiffusionConfig
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
    """

    name: str
    checkpoint: Callable[[Path], Path]
    modules: tuple[str, ...]
    size_px: int
    batch: int


def tiny_animediffusion(folder: Path) -> Path:
    """An AnimeDiffusion with seeded random weights in the published layout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AnimeDiffusion(TINY_ANIMEDIFFUSION)
    network.set_schedule(torch.from_numpy(linear_betas(TINY_ANIMEDIFFUSION.timesteps, 1e-6, 1e-2)))
    path = folder / "tiny.safetensors"
    save_file(network.state_dict(), path, metadata={"config": json.dumps({"unet": asdict(TINY_ANIMEDIFFUSION)})})
    return path


_ANIMEDIFFUSION = ("time_projection", "denoiser")

FULL = (Declaration("AnimeDiffusion faces 64x64", lambda _: FACES, _ANIMEDIFFUSION, 64, 2),)
SMOKE = (Declaration("tiny AnimeDiffusion 32x32", tiny_animediffusion, _ANIMEDIFFUSION, 32, 2),)

RUNNERS = ("onnxruntime:cpu:fp32", "onnxruntime:cuda:fp16", "tensorrt-rtx:cuda:fp16", "tensorrt:cuda:fp16")
"""As for ``saishiki bench --backends``. What does not run here is skipped; a smoke run takes the first."""

"""Inputs of every exported module as they occur in a run: what range scans and certificates feed it.

Pictures go through the published preparation. What a denoiser's hoists ask for is made of that by the U-Net's own
methods; the exported projectors are compared with them in turn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from saishiki.models.colorizediffusion.conditions import Conditions, prepare_conditions
from saishiki.models.colorizediffusion.given import ENHANCED, Pictures
from saishiki.models.colorizediffusion.latent_encoder import size_embedding
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from saishiki.models.colorizediffusion.pictures import clip_pixels, latent_mask
from saishiki.models.colorizediffusion.vae import VAEEncoder
from saishiki.runtime.pipelines.colorizediffusion import Mode

Tensors = Mapping[str, Tensor]
Sizes = Mapping[str, int]

SMALL_SIDE = 64
"""Latents for probes are those of pictures this small, enlarged: to encode a large one costs more than to probe."""


@dataclass(frozen=True)
class Probe:
    """The pictures of one probe: sketch (B, 1, H, W), dark on bright, and reference (B, 3, H, W), both in [-1, 1]."""

    network: ColorizeDiffusion
    sizes: Sizes
    sketch: Tensor
    reference: Tensor

    def inputs(self, module: str) -> Tensors:
        """The inputs of a module that is no denoiser."""
        return _MAKERS[module](self)

    @property
    def lines(self) -> Tensor:
        """(B, 3, H, W): bright lines on dark."""
        return -self.sketch.expand(-1, 3, -1, -1)

    @cached_property
    def tokens(self) -> Tensor:
        """(1, T, W) of the first reference; noise where the network has no image encoder."""
        config, encoder = self.network.config, self.network.cond_stage_model
        if encoder is None:
            return noise(1, config.tokens, config.context_dim)
        tokens: Tensor = encoder(self.pixels)
        return tokens[:, 1:]

    @cached_property
    def pixels(self) -> Tensor:
        """(1, 3, S, S): the first reference as the image encoder sees it."""
        return clip_pixels(self.reference[:1], self.network.config.image_encoder.image_size)

    def latent(self, height: int, width: int) -> Tensor:
        """(1, 4, H / 8, W / 8) of a small copy of the first reference."""
        small = F.interpolate(self.reference[:1], size=(SMALL_SIDE, SMALL_SIDE), mode="bicubic")
        mean, _ = VAEEncoder(self.network.first_stage_model)(small)
        stride = self.network.config.stride // self.network.config.latent_stride
        enlarged = F.interpolate(mean, size=(height // stride, width // stride), mode="bicubic")
        return self.network.config.vae.scale_factor * enlarged

    def own_latent(self) -> Tensor:
        """The same, of this probe's size."""
        return self.latent(self.reference.shape[2], self.reference.shape[3])

    def encoded_picture(self, height: int, width: int) -> dict[str, Tensor]:
        """What the background and the style encoder take."""
        size_width = self.network.config.size_width
        assert size_width is not None, "only v2 has these encoders"
        size = size_embedding((height, width), (height, width), size_width)
        return {"z": self.latent(height, width), "context": self.tokens, "size": size}

    def timesteps(self) -> Tensor:
        """(steps,) fp32 over the whole schedule, and between its integers."""
        return torch.linspace(0, self.network.config.timesteps - 1, self.sizes["steps"])

    def conditions(self, mode: Mode, row: int) -> Conditions:
        """Of the published preparation for one of the pictures."""
        height, width = self.reference.shape[2:]
        mask = ellipse(height, width)
        pictures = Pictures(
            sketch=self.lines[row : row + 1],
            reference=None if self.network.cond_stage_model is None else self.reference[row : row + 1],
            reference_mask=mask,
            sketch_mask=latent_mask(mask),
        )
        draws = [noise(*self.own_latent().shape) for _ in range(2)] if mode != "vanilla" else []
        return prepare_conditions(self.network, pictures, ENHANCED[mode], noises=draws)


def _maps(probe: Probe) -> Tensors:
    encoder = probe.network.bg_encoder
    assert encoder is not None, "only v2 has a background encoder"
    stride = probe.network.config.stride
    maps = encoder(**probe.encoded_picture(probe.sizes["positions"] * stride, stride))
    return {f"map_{index:02}": tokens for index, tokens in enumerate(maps)}


def _encoded(probe: Probe) -> Tensors:
    return probe.encoded_picture(probe.reference.shape[2], probe.reference.shape[3])


def _context(probe: Probe) -> Tensors:
    return {"context": probe.tokens.repeat(1, probe.sizes["contexts"], 1)}


def _style(probe: Probe) -> Tensors:
    encoder = probe.network.style_encoder
    assert encoder is not None, "only v2 has a style encoder"
    vectors: Sequence[Tensor] = encoder(**probe.encoded_picture(SMALL_SIDE, SMALL_SIDE))
    embedding = probe.network.unet.time_embedding(probe.timesteps())
    return {"style": torch.cat(tuple(vectors), dim=1), "embedding": embedding}


_MAKERS: Mapping[str, Callable[[Probe], Tensors]] = {
    "image_encoder": lambda probe: {"pixels": probe.pixels},
    "sketch_encoder": lambda probe: {"sketch": probe.lines[:1]},
    "threshold_embedder": lambda probe: {"thresholds": torch.linspace(0.05, 0.5, probe.sizes["count"])},
    "cluster_transformer": lambda probe: {"tokens": probe.tokens},
    "style_encoder": _encoded,
    "background_encoder": _encoded,
    "vae_encoder": lambda probe: {"image": probe.reference[:1]},
    "vae_decoder": lambda probe: {"z": probe.own_latent()},
    "time_projection": lambda probe: {"t": probe.timesteps()},
    "context_projector": _context,
    "context_projector_fg": _context,
    "context_projector_bg": _context,
    "style_projector": _style,
    "warp_projector": _maps,
}


def ellipse(height: int, width: int) -> Tensor:
    """(1, 1, H, W): 1 within an ellipse of half the picture's sides, 0 outside."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return (torch.hypot(y, x) < 0.5).float()[None, None]


def noise(*shape: int) -> Tensor:
    """Seeded, of variance 1."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))

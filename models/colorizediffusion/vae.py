"""The KL-autoencoder: diffusers' ``AutoencoderKL`` under the published (latent-diffusion) key names.

"High-Resolution Image Synthesis with Latent Diffusion Models", Rombach et al., CVPR 2022. diffusers computes the same
thing under other names: :data:`RENAMED` is the whole translation, besides the attention's four projections, which are
linear layers in diffusers and 1 x 1 convolutions as published. GroupNorm's eps is 1e-6 throughout.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from saishiki.models.beside_cpu_torch import import_beside_cpu_torch
from saishiki.models.colorizediffusion.config import VAEConfig
from saishiki.models.streaming import derived

LOGVAR_RANGE = (-30.0, 20.0)

RENAMED = (
    # diffusers, published; {mirrored} counts levels from the other end
    ("encoder.down_blocks.{level}.resnets.{block}.", "encoder.down.{level}.block.{block}."),
    ("encoder.down_blocks.{level}.downsamplers.0.", "encoder.down.{level}.downsample."),
    ("decoder.up_blocks.{level}.resnets.{block}.", "decoder.up.{mirrored}.block.{block}."),
    ("decoder.up_blocks.{level}.upsamplers.0.", "decoder.up.{mirrored}.upsample."),
    (".mid_block.resnets.0.", ".mid.block_1."),
    (".mid_block.resnets.1.", ".mid.block_2."),
    (".mid_block.attentions.0.group_norm.", ".mid.attn_1.norm."),
    (".mid_block.attentions.0.to_q.", ".mid.attn_1.q."),
    (".mid_block.attentions.0.to_k.", ".mid.attn_1.k."),
    (".mid_block.attentions.0.to_v.", ".mid.attn_1.v."),
    (".mid_block.attentions.0.to_out.0.", ".mid.attn_1.proj_out."),
    (".conv_shortcut.", ".nin_shortcut."),
    (".conv_norm_out.", ".norm_out."),
)


class VAE(nn.Module):
    """diffusers' encoder and decoder; its ``state_dict`` speaks the published names, both ways."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        built = autoencoder(config)
        self.encoder, self.decoder = built.encoder, built.decoder
        self.quant_conv, self.post_quant_conv = built.quant_conv, built.post_quant_conv
        self._names = published_names(self, config)
        self.register_state_dict_post_hook(_publish)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_unpublish)  # type: ignore[no-untyped-call]

    def published_names(self) -> dict[str, str]:
        """The published name of every parameter, by its own."""
        return dict(self._names)


class VAEEncoder(nn.Module):
    """image: (B, 3, H, W) in [-1, 1] -> mean, logvar: (B, Z, H/8, W/8) of the posterior, unscaled, logvar clamped.

    A latent is ``scale_factor * (mean + exp(logvar / 2) * noise)``.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)


class VAEDecoder(nn.Module):
    """z: (B, Z, H/8, W/8), a latent as the sampler leaves it -> image: (B, 3, H, W), about [-1, 1], not clamped."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.scale_factor = vae.config.scale_factor

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(z / self.scale_factor))
        return image


def autoencoder(config: VAEConfig) -> Any:
    """diffusers' ``AutoencoderKL`` of these widths; attention in the middle only."""
    levels = len(config.channel_mult)
    return import_beside_cpu_torch("diffusers.models.autoencoders.autoencoder_kl").AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.channels * mult for mult in config.channel_mult),
        layers_per_block=config.num_res_blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=32,
    )


def sample_latent(mean: Tensor, logvar: Tensor, noise: Tensor, *, scale_factor: float) -> Tensor:
    """The latent that a standard normal ``noise`` of its shape picks from the posterior, scaled for the U-Net."""
    return scale_factor * (mean + torch.exp(logvar / 2) * noise)


def published_names(vae: nn.Module, config: VAEConfig) -> dict[str, str]:
    """The published name of every parameter, by the name that diffusers gives it."""
    pairs = tuple(_renamed(config))
    return {name: _translate(name, pairs) for name, _ in vae.named_parameters()}


def _renamed(config: VAEConfig) -> Iterator[tuple[str, str]]:
    levels = len(config.channel_mult)
    for own, published in RENAMED:
        # Decoder levels have one residual block more than the encoder's. Pairs that name no block repeat; no harm done.
        for level in range(levels):
            for block in range(config.num_res_blocks + 1):
                numbers = {"level": level, "block": block, "mirrored": levels - 1 - level}
                yield own.format(**numbers), published.format(**numbers)


def _translate(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for own, published in pairs:
        name = name.replace(own, published)
    return name


def _is_projection(published: str) -> bool:
    return ".attn_1." in published and published.endswith(".weight") and ".norm." not in published


def _linear(convolution: Tensor) -> Tensor:
    return convolution[:, :, 0, 0]


def _publish(vae: VAE, state: dict[str, Tensor], prefix: str, _: object) -> None:
    """After ``state_dict``: published names, and projections as 1 x 1 convolutions."""
    for own, published in vae.published_names().items():
        tensor = state.pop(prefix + own)
        state[prefix + published] = tensor[:, :, None, None] if _is_projection(published) else tensor


def _unpublish(vae: VAE, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before ``load_state_dict``: diffusers' names, and projections as linear layers."""
    for own, published in vae.published_names().items():
        if prefix + published in state:
            tensor = state.pop(prefix + published)
            state[prefix + own] = derived(_linear, tensor) if _is_projection(published) else tensor

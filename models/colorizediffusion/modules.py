"""What runs once per picture or schedule, as modules of their own: encoders, and what prepares a denoiser's inputs.

They have one row: pictures are encoded one at a time, and the runtime keeps what comes out for every later call.
"""

import torch
from torch import Tensor, nn

from saishiki.models.colorizediffusion.background_encoder import BackgroundEncoder
from saishiki.models.colorizediffusion.blocks import residual_blocks
from saishiki.models.colorizediffusion.cluster_transformer import ClusterTransformer
from saishiki.models.colorizediffusion.config import ColorizeDiffusionConfig, Region
from saishiki.models.colorizediffusion.cross_attention import merged_linear
from saishiki.models.colorizediffusion.image_encoder import ImageEncoder
from saishiki.models.colorizediffusion.interface import Dims, ExportedModule, Given, Outputs, numbered
from saishiki.models.colorizediffusion.sketch_encoder import SketchEncoder
from saishiki.models.colorizediffusion.style_encoder import StyleEncoder
from saishiki.models.colorizediffusion.threshold_embedder import ThresholdEmbedder
from saishiki.models.colorizediffusion.unet import UNet
from saishiki.models.colorizediffusion.vae import VAE, VAEDecoder, VAEEncoder
from saishiki.runtime.signature import Signature, TensorSpec

ONE = "1"
"""Rows of what is computed for one picture."""


class ImageEncoding(ExportedModule):
    """``pixels`` (1, 3, S, S), resized and normalised -> ``tokens`` (1, 1 + T, W), the class token first."""

    def __init__(self, encoder: ImageEncoder, config: ColorizeDiffusionConfig) -> None:
        tower, dims = config.image_encoder, Dims(config, ONE)
        patches = (tower.image_size // tower.patch_size) ** 2
        inputs = (dims.spec("pixels", 3, tower.image_size, tower.image_size),)
        super().__init__(Signature(inputs, (dims.spec("tokens", 1 + patches, tower.embed_dim),), {}))
        self.encoder = encoder

    def compute(self, given: Given) -> Outputs:
        tokens: Tensor = self.encoder(given["pixels"])
        return tokens


class SketchEncoding(ExportedModule):
    """``sketch`` (1, 3, H, W), bright lines on dark in [-1, 1] -> ``hint_0`` .. ``hint_4``, finest first."""

    def __init__(self, encoder: SketchEncoder, config: ColorizeDiffusionConfig) -> None:
        dims = Dims(config, ONE)
        super().__init__(Signature((dims.image("sketch", 3),), hint_specs(dims), dims.multiples))
        self.encoder = encoder

    def compute(self, given: Given) -> Outputs:
        hints: tuple[Tensor, ...] = self.encoder(given["sketch"])
        return hints


class PictureEncoding(ExportedModule):
    """``image`` (1, 3, H, W) in [-1, 1] -> ``mean`` and ``logvar`` (1, 4, H/8, W/8) of the VAE's posterior."""

    def __init__(self, vae: VAE, config: ColorizeDiffusionConfig) -> None:
        dims = Dims(config, ONE)
        moments = tuple(dims.latent(name, config.latent_channels) for name in ("mean", "logvar"))
        super().__init__(Signature((dims.image("image", 3),), moments, dims.multiples_of_vae))
        self.encoder = VAEEncoder(vae)

    def compute(self, given: Given) -> Outputs:
        moments: tuple[Tensor, Tensor] = self.encoder(given["image"])
        return moments


class PictureDecoding(ExportedModule):
    """``z`` (1, 4, H/8, W/8), as the sampler leaves it -> ``image`` (1, 3, H, W), not clamped."""

    def __init__(self, vae: VAE, config: ColorizeDiffusionConfig) -> None:
        dims = Dims(config, ONE)
        latent = dims.latent("z", config.latent_channels)
        super().__init__(Signature((latent,), (dims.image("image", 3),), dims.multiples_of_vae))
        self.decoder = VAEDecoder(vae)

    def compute(self, given: Given) -> Outputs:
        image: Tensor = self.decoder(given["z"])
        return image


class TimeProjection(ExportedModule):
    """``t`` (steps,) -> ``time`` (steps, P), the residual blocks' vectors; in v2 also ``embedding`` (steps, 4 m)."""

    def __init__(self, unet: UNet) -> None:
        self.is_styled = unet.config.generation == "v2"
        dims = Dims(unet.config, "steps")
        outputs = (dims.spec("time", time_width(unet)), dims.spec("embedding", unet.config.time_width))
        super().__init__(Signature((dims.spec("t"),), outputs if self.is_styled else outputs[:1], {}))
        self.unet = unet

    def compute(self, given: Given) -> Outputs:
        time = self.unet.time_projections(given["t"])
        return (time, self.unet.time_embedding(given["t"])) if self.is_styled else time


class ContextProjector(ExportedModule):
    """``context`` (1, tokens, W) -> ``key_00`` .. ``value_15`` (1, tokens, C), with one region's LoRAs merged.

    In v1.5 the two regions may share a context of both, twice as long: the dim is ``contexts`` times T.
    """

    def __init__(self, unet: UNet, region: Region | None) -> None:
        dims, layers = Dims(unet.config, ONE), unet.cross_attentions()
        tokens = f"contexts*{unet.config.tokens}"
        outputs = tuple(
            dims.spec(f"{name}_{index:02}", tokens, width)
            for name in ("key", "value")
            for index, width in enumerate(unet.config.transformer_widths)
        )
        super().__init__(Signature((dims.spec("context", tokens, unet.config.context_dim),), outputs, {}))
        self.to_k = nn.ModuleList(merged_linear(layer.to_k, region) for layer in layers)
        self.to_v = nn.ModuleList(merged_linear(layer.to_v, region) for layer in layers)

    def compute(self, given: Given) -> Outputs:
        return tuple(layer(given["context"]) for layer in (*self.to_k, *self.to_v))


class ThresholdEmbedding(ExportedModule):
    """``thresholds`` (count,) -> ``embedding`` (count, 1, W)."""

    def __init__(self, embedder: ThresholdEmbedder, config: ColorizeDiffusionConfig) -> None:
        dims = Dims(config, "count")
        super().__init__(Signature((dims.spec("thresholds"),), (dims.spec("embedding", 1, config.context_dim),), {}))
        self.embedder = embedder

    def compute(self, given: Given) -> Outputs:
        embedding: Tensor = self.embedder(given["thresholds"])
        return embedding


class Clustering(ExportedModule):
    """``tokens`` (1, T, W) -> ``clustered`` of the same shape."""

    def __init__(self, transformer: ClusterTransformer, config: ColorizeDiffusionConfig) -> None:
        dims, shape = Dims(config, ONE), (config.tokens, config.context_dim)
        super().__init__(Signature((dims.spec("tokens", *shape),), (dims.spec("clustered", *shape),), {}))
        self.transformer = transformer

    def compute(self, given: Given) -> Outputs:
        clustered: Tensor = self.transformer(given["tokens"])
        return clustered


class BackgroundEncoding(ExportedModule):
    """``z``, ``context`` (1, T, W), ``size`` (1, 512) -> ``map_00`` .. ``map_11`` (1, tokens, C), deepest first."""

    def __init__(self, encoder: BackgroundEncoder, config: ColorizeDiffusionConfig) -> None:
        dims = Dims(config, ONE)
        super().__init__(Signature(_latent_and_context(dims), map_specs(dims), dims.multiples))
        self.encoder = encoder

    def compute(self, given: Given) -> Outputs:
        maps: tuple[Tensor, ...] = self.encoder(**given)
        return maps


class StyleEncoding(ExportedModule):
    """``z``, ``context`` (1, T, W), ``size`` (1, 512) -> ``style`` (1, .), the decoder blocks' vectors side by side."""

    def __init__(self, encoder: StyleEncoder, config: ColorizeDiffusionConfig) -> None:
        dims = Dims(config, ONE)
        style = dims.spec("style", sum(config.style_widths))
        super().__init__(Signature(_latent_and_context(dims), (style,), dims.multiples))
        self.encoder = encoder

    def compute(self, given: Given) -> Outputs:
        return torch.cat(self.encoder(**given), dim=1)


class StyleProjector(ExportedModule):
    """``style`` (1, .), ``embedding`` (steps, 4 m) -> ``modulation`` (steps, 1, .), scale and shift of every block."""

    def __init__(self, unet: UNet) -> None:
        width = sum(unet.config.style_widths)
        one, steps = Dims(unet.config, ONE), Dims(unet.config, "steps")
        inputs = (one.spec("style", width), steps.spec("embedding", unet.config.time_width))
        super().__init__(Signature(inputs, (steps.spec("modulation", 1, width),), {}))
        self.unet = unet

    def compute(self, given: Given) -> Outputs:
        return self.unet.style_modulations(given["style"], given["embedding"])


class WarpProjector(ExportedModule):
    """``map_00`` .. ``map_11`` (1, tokens, C) -> ``warp_key_00`` .. ``warp_value_11`` (1, tokens, inner).

    ``positions`` are the tokens of the deepest level, as many as the picture's height and width allow multiples of its
    stride; every other level has 4, 16 or 64 times as many.
    """

    def __init__(self, unet: UNet) -> None:
        assert unet.config.warp_widths is not None, "only v2 warps"
        config, dims = unet.config, Dims(unet.config, ONE)
        tokens = [_positions(config, place.level) for place in config.decoder_places]
        inputs = zip(tokens, reversed(config.encoder_widths), strict=True)
        outputs = [
            dims.spec(f"{name}_{index:02}", count, inner)
            for name in ("warp_key", "warp_value")
            for index, (count, inner) in enumerate(zip(tokens, config.warp_widths or (), strict=True))
        ]
        maps = tuple(dims.spec(f"map_{index:02}", *shape) for index, shape in enumerate(inputs))
        super().__init__(Signature(maps, tuple(outputs), dims.multiples))
        self.unet = unet

    def compute(self, given: Given) -> Outputs:
        keys, values = self.unet.warp_projections(numbered(given, "map_"))
        return (*keys, *values)


def _positions(config: ColorizeDiffusionConfig, level: int) -> str:
    halvings = len(config.channel_mult) - 1 - level
    return f"{4**halvings}*positions" if halvings else "positions"


def time_width(unet: UNet) -> int:
    """P: the widths of all residual blocks' time vectors together."""
    return sum(block.channels_out for block in residual_blocks(unet))


def hint_specs(dims: Dims) -> tuple[TensorSpec, ...]:
    """The sketch encoder's hints: at the first level, then one for every level."""
    widths = dims.config.widths
    places = [(widths[0], 0), *((width, min(i + 1, len(widths) - 1)) for i, width in enumerate(widths))]
    return tuple(dims.latent(f"hint_{i}", width, level) for i, (width, level) in enumerate(places))


def map_specs(dims: Dims) -> tuple[TensorSpec, ...]:
    """The background encoder's maps, as the decoder's skips: deepest first."""
    config = dims.config
    places = zip(config.decoder_places, reversed(config.encoder_widths), strict=True)
    return tuple(dims.tokens(f"map_{i:02}", place.level, width) for i, (place, width) in enumerate(places))


def _latent_and_context(dims: Dims) -> tuple[TensorSpec, ...]:
    config = dims.config
    assert config.size_width is not None, "only v2 encodes pictures by their size"
    return (
        dims.latent("z", config.latent_channels),
        dims.spec("context", config.tokens, config.context_dim),
        dims.spec("size", 2 * config.size_width),
    )

"""What shapes a ColorizeDiffusion network, and the three published configurations.

"ColorizeDiffusion: Adjustable Sketch Colorization with Reference Image and Text", Yan et al., arXiv 2401.01456 (v1);
"Image Referenced Sketch Colorization Based on Animation Creation Workflow", Yan et al., arXiv 2502.19937 (v1.5);
"ColorizeDiffusion v2: Enhancing Reference-based Sketch Colorization Through Separating Utilities", Yan et al., arXiv
2504.06895. Facts (key names, widths, order of operations) from tellurion-kanata/ColorizeDiffusion, commit c9bd9fb,
observed from outside; no code of it is used.
"""

from dataclasses import dataclass
from typing import Literal

from saishiki.runtime.pipelines.colorizediffusion import Generation

LoRARank = int | float
"""A rank, or as a float the share of a layer's smaller side: ``int(share * min(in, out))``."""

Region = Literal["fg", "bg"]
"""Which LoRA: the foreground's or the background's."""

HINTED_BLOCKS = (0, 3, 6, 9, 11)
"""The encoder's blocks to whose outputs the sketch's hints are added."""


@dataclass(frozen=True)
class Place:
    """Where a transformer block is: which half of the U-Net, and how often its level is halved."""

    half: Literal["in", "mid", "out"]
    level: int

    @property
    def name(self) -> str:
        """``in_0`` to ``in_2``, ``mid``, ``out_2`` to ``out_0``."""
        return "mid" if self.half == "mid" else f"{self.half}_{self.level}"

    @property
    def scale(self) -> float:
        """Of the latent's height and width."""
        return float(0.5**self.level)


@dataclass(frozen=True)
class VAEConfig:
    """The KL-VAE: names as in the published configuration."""

    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    latent_channels: int
    scale_factor: float


@dataclass(frozen=True)
class ImageEncoderConfig:
    """The image tower of CLIP: names as open_clip's."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    head_width: int
    embed_dim: int


@dataclass(frozen=True)
class ColorizeDiffusionConfig:
    """Everything that shapes the networks.

    Attributes:
        generation: decides how regions are chosen and which modules there are.
        head_channels: width of an attention head of the U-Net; the number of heads follows.
        context_dim: width of a token of the image encoder.
        tokens: how many of them stand for one reference, without the class token.
        lora_fg, lora_bg: rank of each region's LoRA; v2 has them in the decoder only, v1 not at all.
        cluster_layers: of the cluster transformer (v1.5).
        threshold_width: of the sinusoid of a mask threshold (v1.5).
        size_width: of the sinusoid of one side of a size embedding (v2).
        warp_widths: of the queries of each warp module (v2), deepest first; their heads are always 64 wide.
        timesteps: of the diffusion schedule.
    """

    generation: Generation
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    head_channels: int
    context_dim: int
    tokens: int
    lora_fg: LoRARank | None
    lora_bg: LoRARank | None
    cluster_layers: int | None
    threshold_width: int | None
    size_width: int | None
    warp_widths: tuple[int, ...] | None
    vae: VAEConfig
    image_encoder: ImageEncoderConfig
    timesteps: int

    @property
    def latent_channels(self) -> int:
        """Of the latent that the U-Net denoises."""
        return self.vae.latent_channels

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first; every level but the deepest has attention."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)

    @property
    def time_width(self) -> int:
        """Of the time embedding."""
        return 4 * self.model_channels

    @property
    def latent_stride(self) -> int:
        """Height and width of a latent must be multiples of this, so that every level halves exactly."""
        return int(2 ** (len(self.channel_mult) - 1))

    @property
    def stride(self) -> int:
        """Height and width of a picture must be multiples of this."""
        return int(2 ** (len(self.vae.channel_mult) - 1)) * self.latent_stride

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels that each encoder block gives, in order; the decoder's skips are these, last first."""
        per_level = [(width,) * (self.num_res_blocks + 1) for width in self.widths]
        stem_and_levels = (self.model_channels, *sum(per_level, ()))
        # A level ends by halving to the next, with its own width; the deepest has nothing to halve to.
        return stem_and_levels[:-1]

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels that each decoder block gives, deepest first."""
        return tuple(self.widths[place.level] for place in self.decoder_places)

    @property
    def transformer_places(self) -> tuple[Place, ...]:
        """Of each transformer block, in order: encoder, middle, decoder."""
        deepest = len(self.channel_mult) - 1
        encoder = [Place("in", level) for level in range(deepest) for _ in range(self.num_res_blocks)]
        decoder = [Place("out", level) for level in reversed(range(deepest)) for _ in range(self.num_res_blocks + 1)]
        return (*encoder, Place("mid", deepest), *decoder)

    @property
    def transformer_widths(self) -> tuple[int, ...]:
        """Channels of each transformer block, in the order of :attr:`transformer_places`."""
        return tuple(self.widths[place.level] for place in self.transformer_places)

    @property
    def decoder_places(self) -> tuple[Place, ...]:
        """Of each decoder block and of the skip it takes, deepest first."""
        levels = reversed(range(len(self.channel_mult)))
        return tuple(Place("out", level) for level in levels for _ in range(self.num_res_blocks + 1))

    @property
    def style_widths(self) -> tuple[int, ...]:
        """Of the scale and shift of each decoder block, side by side; deepest first (v2)."""
        return tuple(2 * width for width in self.decoder_widths)


_VAE = VAEConfig(128, (1, 2, 4, 4), 2, 4, 0.18215)
_VIT_H = ImageEncoderConfig(224, 14, 1280, 32, 80, 1024)
_WARP = (1280,) * 5 + (640,) * 3 + (320,) * 4
_UNET = (320, (1, 2, 4, 4), 2, 64, 1024, 256)

CONFIGS = {
    "v1": ColorizeDiffusionConfig("v1", *_UNET, None, None, None, None, None, None, _VAE, _VIT_H, 1000),
    "v1.5": ColorizeDiffusionConfig("v1.5", *_UNET, 4, 0.5, 6, 256, None, None, _VAE, _VIT_H, 1000),
    "v2": ColorizeDiffusionConfig("v2", *_UNET, 4, 4, None, None, 256, _WARP, _VAE, _VIT_H, 1000),
}
"""The published variants."""

"""The encoder half of the U-Net, which the background and style encoders have too, and lists of layers."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from saishiki.models.colorizediffusion.config import ColorizeDiffusionConfig, LoRARank, Place, Region
from saishiki.models.colorizediffusion.cross_attention import CrossAttention
from saishiki.models.colorizediffusion.layers import Downsample, ResidualBlock
from saishiki.models.colorizediffusion.transformer import CrossStep, SpatialTransformer

Ranks = Mapping[Region, LoRARank | None]
NO_LORA: Ranks = {}


class Layers(nn.ModuleList):
    """Layers that run one after the other."""

    def forward(self, h: Tensor, times: Iterator[Tensor], steps: Iterator[CrossStep]) -> Tensor:
        """h: (B, C, h, w) after all layers; residual blocks and transformers take the next of what is theirs."""
        for layer in self:
            if isinstance(layer, ResidualBlock):
                h = layer(h, next(times))
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, next(steps))
            else:
                h = layer(h)
        return h


def spatial_transformer(config: ColorizeDiffusionConfig, place: Place, ranks: Ranks) -> SpatialTransformer:
    """The transformer of a level, its cross-attention with these LoRAs."""
    width = config.widths[place.level]
    cross = CrossAttention(width, config.context_dim, head_channels=config.head_channels, ranks=ranks)
    return SpatialTransformer(width, config.head_channels, cross)


def input_blocks(config: ColorizeDiffusionConfig, ranks: Ranks = NO_LORA) -> nn.ModuleList:
    """The blocks from the latent to the deepest level; their outputs have ``config.encoder_widths``."""
    deepest = len(config.widths) - 1
    channels = config.model_channels
    blocks = [Layers([nn.Conv2d(config.latent_channels, channels, 3, padding=1)])]
    for level, width in enumerate(config.widths):
        for _ in range(config.num_res_blocks):
            layers: list[nn.Module] = [ResidualBlock(channels, width, config.time_width)]
            if level < deepest:
                layers.append(spatial_transformer(config, Place("in", level), ranks))
            blocks.append(Layers(layers))
            channels = width
        if level < deepest:
            blocks.append(Layers([Downsample(channels)]))
    return nn.ModuleList(blocks)


def residual_blocks(module: nn.Module) -> list[ResidualBlock]:
    """All residual blocks in the order they run, which is also the order of the time projections."""
    return [block for block in module.modules() if isinstance(block, ResidualBlock)]

"""What the background and the style encoder (v2) have in common: the encoder half of the U-Net, on a picture at t = 0.

Source: ``config.py`` names it.
"""

from itertools import repeat

import torch
from torch import Tensor, nn

from saishiki.models.colorizediffusion.blocks import input_blocks, residual_blocks
from saishiki.models.colorizediffusion.config import ColorizeDiffusionConfig
from saishiki.models.colorizediffusion.layers import embed, embedding_layers, sinusoid
from saishiki.models.colorizediffusion.transformer import CrossStep

Size = tuple[int, int]
"""Height and width in pixels."""


def size_embedding(original_px: Size, generated_px: Size, width: int) -> Tensor:
    """(1, 2 * width) fp32: sinusoids of the original's height and width in those of the generated picture.

    An original that is smaller in either direction counts as enlarged: its height by the longer generated side, its
    width in proportion.
    """
    height, original_width = (float(side) for side in original_px)
    ratio = original_width / height
    if original_px[0] < generated_px[0] or original_px[1] < generated_px[1]:
        height += max(generated_px)
        original_width = ratio * height
    relative = torch.tensor([height / generated_px[0], original_width / generated_px[1]])
    return sinusoid(relative, width).flatten()[None]


class LatentEncoder(nn.Module):
    """The blocks of both encoders; a subclass adds one layer per block, ``zero_layers``."""

    def __init__(self, config: ColorizeDiffusionConfig) -> None:
        super().__init__()
        assert config.size_width is not None, "the encoders of v2 take a size embedding"
        self.model_channels = config.model_channels
        self.time_embed = embedding_layers(config.model_channels, config.time_width)
        self.label_emb = nn.Sequential(embedding_layers(2 * config.size_width, config.time_width))
        self.input_blocks = input_blocks(config)

    def features(self, z: Tensor, context: Tensor, size: Tensor) -> list[Tensor]:
        """The output of every block, (B, C, h, w) at its level, finest first.

        Args:
            z: (B, 4, h, w), a scaled latent; context: (B, tokens, context_dim); size: (B, 2 * size_width).
        """
        at_zero = embed(self.time_embed, size.new_zeros(1), self.model_channels)
        embedding = at_zero + self.label_emb(size)
        times = (block.emb_layers(embedding) for block in residual_blocks(self))
        step = CrossStep(lambda block, h: block.attn2(block.norm2(h), context))
        features, h = [], z
        for layers in self.input_blocks:
            h = layers(h, times, repeat(step))
            features.append(h)
        return features

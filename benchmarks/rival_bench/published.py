"""The published AnimeDiffusion U-Net: what is computed in every step as upstream computes it.

Facts from xq-meng/AnimeDiffusion, commit 1582eb0: the time path runs inside the U-Net, and attention is two einsums
around a softmax in fp32, queries and keys divided by the fourth root of the head's width each. Weights and everything
else are those of :class:`saishiki.models.animediffusion.UNet`, whose attention is ``scaled_dot_product_attention``.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from saishiki.models.animediffusion import UNet


class EinsumAttention(nn.Module):
    """x: (B, C, H, W) -> the same; the projections and heads of a given self-attention."""

    def __init__(self, attention: Any, heads: int) -> None:
        super().__init__()
        self.attention = attention
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        q, k, v = self.attention(x.flatten(2)).view(batch, 3, self.heads, channels // self.heads, -1).unbind(1)
        scale = (channels // self.heads) ** -0.25
        scores = torch.einsum("bhdt,bhds->bhts", q * scale, k * scale)
        weights = torch.softmax(scores.float(), dim=-1).to(scores.dtype)
        h = torch.einsum("bhts,bhds->bhdt", weights, v)
        return x + h.reshape(batch, channels, height, width)


def published_unet(unet: UNet) -> UNet:
    """A copy of a U-Net with the published attention; ``published_unet(unet)(x, t)`` is the published computation."""
    twin = copy.deepcopy(unet)
    first, attention, second = cast(list[Any], twin.bottom_block)
    twin.bottom_block = nn.ModuleList([first, EinsumAttention(attention.attention, attention.heads), second])
    return twin

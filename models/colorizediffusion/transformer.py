"""The spatial transformer of the U-Net and its encoders."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saishiki.models.beside_cpu_torch import import_beside_cpu_torch
from saishiki.models.colorizediffusion.cross_attention import CrossAttention
from saishiki.models.colorizediffusion.layers import TRANSFORMER_NORM_EPS, Attention, group_norm


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a gated feed-forward, each added to its input after a norm."""

    def __init__(self, channels: int, head_channels: int, cross_attention: CrossAttention) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attn1 = Attention(channels, channels, inner=channels, head_channels=head_channels)
        self.attn2 = cross_attention
        self.ff = gated_feed_forward(channels)


def gated_feed_forward(channels: int) -> nn.Module:
    """diffusers' GEGLU feed-forward: the first half of the inner layer's output times the GELU of the second."""
    attention = import_beside_cpu_torch("diffusers.models.attention")
    layers: nn.Module = attention.FeedForward(channels, activation_fn="geglu")
    return layers


def as_given(x: Tensor) -> Tensor:
    """x."""
    return x


Attend = Callable[[TransformerBlock, Tensor], Tensor]
"""(a block, its tokens (B, T, C)) -> what cross-attention adds to them."""


@dataclass(frozen=True)
class CrossStep:
    """What one transformer block does between its self-attention and its feed-forward.

    Args:
        attend: cross-attention, with the norm before it.
        widen: applied to all that was computed before, where rows part only here.
    """

    attend: Attend
    widen: Callable[[Tensor], Tensor] = as_given


class SpatialTransformer(nn.Module):
    """An image as row-major tokens through one :class:`TransformerBlock`, and back; the input is added."""

    def __init__(self, channels: int, head_channels: int, cross_attention: CrossAttention) -> None:
        super().__init__()
        self.norm = group_norm(channels, TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, head_channels, cross_attention)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, step: CrossStep) -> Tensor:
        """x: (B, C, h, w) -> the same shape, with the rows that ``step.widen`` makes."""
        block: Any = self.transformer_blocks[0]
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, T, C)
        normed = block.norm1(h)
        h = h + block.attn1(normed, normed)
        x, h = step.widen(x), step.widen(h)
        h = h + step.attend(block, h)
        h = h + block.ff(block.norm3(h))
        output: Tensor = x + self.proj_out(h.transpose(1, 2).reshape(x.shape))
        return output

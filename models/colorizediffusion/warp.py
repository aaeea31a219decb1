"""Replacing skips by what they find in the background's features (v2).

Source: ``config.py`` names it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saishiki.models.colorizediffusion.layers import HEAD_CHANNELS, Attention, feed_forward


class WarpModule(nn.Module):
    """A transformer block whose queries are a skip's pixels and whose keys are a background map's.

    Args:
        width: of the skip and of the map; inner: of queries, keys and values.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, width, inner=inner, head_channels=HEAD_CHANNELS)
        self.ff = feed_forward(width)

    def forward(self, skip: Tensor, background: Tensor) -> Tensor:
        """skip: (B, C, h, w), background: (B, tokens, C) -> the warped skip, (B, C, h, w)."""
        return self.warp(skip, *self.project(background))

    def project(self, background: Tensor) -> tuple[Tensor, Tensor]:
        """(B, tokens, C) -> keys and values (B, tokens, inner)."""
        return self.attn.to_k(background), self.attn.to_v(background)

    def warp(self, skip: Tensor, k: Tensor, v: Tensor, *, copies: int = 1) -> Tensor:
        """The same, given the background's keys and values (B, tokens, inner); skip: (copies * B, C, h, w)."""
        x = skip.flatten(2).transpose(1, 2)  # (B, T, C)
        x = x + self.attn.attend(self.norm1(x), k, v, copies=copies)
        x = x + self.ff(self.norm2(x))
        warped: Tensor = x.transpose(1, 2).reshape(skip.shape)
        return warped


def select_skip(skip: Tensor, warped: Tensor, mask: Tensor, threshold: float | Tensor) -> Tensor:
    """(B, C, h, w): the skip where the mask, resized to its size, is above the threshold; else the warped one.

    mask: (B, 1, h', w'), resized by plain bicubic.
    """
    resized = F.interpolate(mask, size=skip.shape[2:], mode="bicubic")
    return torch.where(resized > threshold, skip, warped)

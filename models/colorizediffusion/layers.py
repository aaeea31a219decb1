"""The blocks that the U-Net and the encoders of ColorizeDiffusion share.

Submodules are named so that ``state_dict()`` has the published keys; ``config.py`` names the source of the facts.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
MAX_PERIOD = 10000.0
NORM_EPS = 1e-5
TRANSFORMER_NORM_EPS = 1e-6
HEAD_CHANNELS = 64
"""Of warp modules and of the cluster transformer, whatever the U-Net's."""


def group_norm(channels: int, eps: float = NORM_EPS) -> nn.GroupNorm:
    """GroupNorm with the published 32 groups."""
    return nn.GroupNorm(GROUPS, channels, eps=eps)


def sinusoid(values: Tensor, width: int) -> Tensor:
    """values: (N,) -> (N, width) fp32: cosines, then sines, of ``value * 10000^(-i / (width / 2))``."""
    half = width // 2
    frequencies = torch.exp(
        -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=values.device) / half
    )
    angles = values.to(torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def embedding_layers(width_in: int, width: int) -> nn.Sequential:
    """Two linear layers with a SiLU between them."""
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width))


def embed(layers: nn.Sequential, values: Tensor, width: int) -> Tensor:
    """values: (N,) -> (N, width_out): their sinusoid through :func:`embedding_layers`, in these layers' dtype."""
    embedding: Tensor = layers(sinusoid(values, width).to(next(layers.parameters()).dtype))
    return embedding


def feed_forward(width: int) -> nn.Sequential:
    """Two linear layers with a SiLU between them, four times as wide inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, *, copies: int = 1) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: (copies * B, T, C) from q of that shape, and k and v: (B, S, C), C = heads * D.

    With ``copies`` above 1 each row of k and v serves the rows ``b``, ``B + b``, ... of q: their queries are laid side
    by side, so that k and v are neither copied nor read twice.
    """
    k, v = (_split_heads(x, heads) for x in (k, v))
    if copies == 1:
        return F.scaled_dot_product_attention(_split_heads(q, heads), k, v).transpose(1, 2).flatten(2)
    rows, tokens, width = q.shape
    depth = width // heads
    q = q.reshape(copies, -1, tokens, heads, depth).permute(1, 3, 0, 2, 4).flatten(2, 3)  # (B, heads, copies * T, D)
    out = F.scaled_dot_product_attention(q, k, v).reshape(-1, heads, copies, tokens, depth)
    return out.permute(2, 0, 3, 1, 4).reshape(rows, tokens, width)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)  # (B, heads, T, D)


class Attention(nn.Module):
    """Multi-head attention without biases but the output's.

    Args:
        width: of the queries' tokens and of the result; context_width: of the tokens attended to.
        inner: of queries, keys and values; head_channels: of one head.
    """

    def __init__(self, width: int, context_width: int, *, inner: int, head_channels: int) -> None:
        super().__init__()
        self.heads = inner // head_channels
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context_width, inner, bias=False)
        self.to_v = nn.Linear(context_width, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, T, width), context: (B, S, context_width) -> (B, T, width)."""
        return self.attend(x, self.to_k(context), self.to_v(context))

    def attend(self, x: Tensor, k: Tensor, v: Tensor, *, copies: int = 1) -> Tensor:
        """The same, given the keys and values of the context: (B, S, inner); x: (copies * B, T, width)."""
        output: Tensor = self.to_out(attention(self.to_q(x), k, v, self.heads, copies=copies))
        return output


class ResidualBlock(nn.Module):
    """Two convolutions; the time's projection is added between them, before the second norm."""

    def __init__(self, channels_in: int, channels_out: int, time_width: int) -> None:
        super().__init__()
        self.channels_out = channels_out
        self.in_layers = nn.Sequential(
            group_norm(channels_in), nn.SiLU(), nn.Conv2d(channels_in, channels_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, channels_out))
        self.out_layers = nn.Sequential(
            group_norm(channels_out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(channels_out, channels_out, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, channels_in, h, w); time: (B, channels_out), of ``emb_layers``."""
        h = self.in_layers(x) + time[:, :, None, None]
        output: Tensor = self.skip_connection(x) + self.out_layers(h)
        return output


class Downsample(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.op(x)
        return halved


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by two, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled

"""The cluster transformer of v1.5: tokens of a masked reference, gathered by learned queries.

Source: ``config.py`` names it.
"""

import torch
from torch import Tensor, nn

from saishiki.models.colorizediffusion.config import ColorizeDiffusionConfig
from saishiki.models.colorizediffusion.layers import HEAD_CHANNELS, Attention, feed_forward


class ClusterLayer(nn.ModuleList):
    """Both norms, the attention to the tokens, which are taken as they are, and the feed-forward."""

    def __init__(self, width: int) -> None:
        attention = Attention(width, width, inner=width, head_channels=HEAD_CHANNELS)
        super().__init__([nn.LayerNorm(width), nn.LayerNorm(width), attention, feed_forward(width)])

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x: (B, T, width), tokens: (B, S, width) -> (B, T, width)."""
        norm, norm_ff, attention, feed = self
        x = x + attention(norm(x), tokens)
        output: Tensor = x + feed(norm_ff(x))
        return output


class ClusterTransformer(nn.Module):
    """As many tokens as there are learned queries, which must be as many as a reference has."""

    def __init__(self, config: ColorizeDiffusionConfig) -> None:
        super().__init__()
        assert config.cluster_layers is not None, "only v1.5 has a cluster transformer"
        self.embedding = nn.Parameter(torch.zeros(config.tokens, config.context_dim))
        self.layers = nn.ModuleList(ClusterLayer(config.context_dim) for _ in range(config.cluster_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, T, context_dim) -> the same shape."""
        x = self.embedding.expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, tokens)
        return x

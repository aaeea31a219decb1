"""The threshold embedder of v1.5: what is added to tokens that a mask of this threshold cut out.

Source: ``config.py`` names it.
"""

from torch import Tensor, nn

from saishiki.models.colorizediffusion.config import ColorizeDiffusionConfig
from saishiki.models.colorizediffusion.layers import embed, embedding_layers


class ThresholdEmbedder(nn.Module):
    """A mask threshold as a token."""

    def __init__(self, config: ColorizeDiffusionConfig) -> None:
        super().__init__()
        assert config.threshold_width is not None, "only v1.5 has a threshold embedder"
        self.width = config.threshold_width
        self.embed_layer = embedding_layers(config.threshold_width, config.context_dim)

    def forward(self, thresholds: Tensor) -> Tensor:
        """thresholds: (N,) -> (N, 1, context_dim)."""
        return embed(self.embed_layer, thresholds, self.width)[:, None]

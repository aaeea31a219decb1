"""The background encoder of v2: what skips are warped with."""

from torch import Tensor, nn

from saishiki.models.colorizediffusion.config import ColorizeDiffusionConfig
from saishiki.models.colorizediffusion.latent_encoder import LatentEncoder


class BackgroundEncoder(LatentEncoder):
    """A latent picture as one map of tokens per decoder block."""

    def __init__(self, config: ColorizeDiffusionConfig) -> None:
        super().__init__(config)
        self.zero_layers = nn.ModuleList(nn.Conv2d(width, width, 1) for width in config.encoder_widths)

    def forward(self, z: Tensor, context: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Twelve maps (B, h * w of the level, C), deepest first; the arguments are those of :meth:`features`."""
        features = zip(self.zero_layers, self.features(z, context, size), strict=True)
        maps = [layer(h).flatten(2).transpose(1, 2) for layer, h in features]
        return tuple(reversed(maps))

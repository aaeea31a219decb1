"""The style encoder of v2, and how its vectors scale and shift what the decoder computes.

Source: ``config.py`` names it.
"""

from torch import Tensor, nn

from saishiki.models.colorizediffusion.config import ColorizeDiffusionConfig
from saishiki.models.colorizediffusion.latent_encoder import LatentEncoder


class StyleEncoder(LatentEncoder):
    """A latent picture as one vector per decoder block."""

    def __init__(self, config: ColorizeDiffusionConfig) -> None:
        super().__init__(config)
        widths = zip(config.encoder_widths, reversed(config.style_widths), strict=True)
        self.zero_layers = nn.ModuleList(nn.Linear(width, style) for width, style in widths)

    def forward(self, z: Tensor, context: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Twelve vectors (B, 2 C), deepest first; the arguments are those of :meth:`features`."""
        features = zip(self.zero_layers, self.features(z, context, size), strict=True)
        vectors = [layer(h.mean(dim=(2, 3))) for layer, h in features]
        return tuple(reversed(vectors))


class StyleModule(nn.Sequential):
    """Scale and shift of one decoder block: a norm, the time's projection and an output projection."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(time_width, width), nn.Linear(width, width))

    def forward(self, style: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """style: (.., 2 C) and the time embedding (.., 4 m), broadcast to each other -> (.., 2 C)."""
        norm, project_time, project = self
        modulation: Tensor = project(norm(style + project_time(embedding)))
        return modulation


def modulate(h: Tensor, modulation: Tensor) -> Tensor:
    """h (1 + scale) + shift: (B, C, h, w), modulation: (B, 2 C), the scale first."""
    scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
    return h * (1 + scale) + shift

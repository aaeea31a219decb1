"""The sketch encoder: five hints that are added inside the U-Net's encoder.

Source: ``config.py`` names it.
"""

from torch import Tensor, nn

from saishiki.models.colorizediffusion.config import ColorizeDiffusionConfig

TRUNK_WIDTHS = (3, 16, 16, 32, 32, 96, 96, 256)
TRUNK_STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)


def conv3x3(channels_in: int, channels_out: int, stride: int) -> nn.Conv2d:
    """A convolution with padding 1."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1)


def trunk(width: int) -> nn.Sequential:
    """Eight convolutions with SiLU between them, to an eighth of the size."""
    widths = (*TRUNK_WIDTHS, width)
    layers: list[nn.Module] = []
    for channels_in, channels_out, stride in zip(widths[:-1], widths[1:], TRUNK_STRIDES, strict=True):
        layers += [conv3x3(channels_in, channels_out, stride), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class SketchEncoder(nn.Module):
    """A sketch as one hint per ``HINTED_BLOCKS``, finest first."""

    def __init__(self, config: ColorizeDiffusionConfig) -> None:
        super().__init__()
        m, widths = config.model_channels, config.widths
        self.model = trunk(m)
        self.zero_layer = nn.Sequential(nn.Conv2d(m, m, 1))
        strides = (*(2 for _ in widths[:-1]), 1)
        stages = zip((m, *widths[:-1]), widths, strides, strict=True)
        self.output_blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), conv3x3(before, width, stride), nn.SiLU(), conv3x3(width, width, 1))
            for before, width, stride in stages
        )
        self.zero_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 1)) for width in widths)

    def forward(self, sketch: Tensor) -> tuple[Tensor, ...]:
        """sketch: (B, 3, H, W) in [-1, 1], bright lines on dark, H and W multiples of ``config.stride`` -> hints."""
        h = self.model(sketch)
        hints = [self.zero_layer(h)]
        for stage, to_hint in zip(self.output_blocks, self.zero_blocks, strict=True):
            h = stage(h)
            hints.append(to_hint(h))
        return tuple(hints)

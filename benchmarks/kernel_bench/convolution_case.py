"""The convolutions that ``bench_kernels.py`` measures: of AnimeDiffusion's and SD2.1's U-Nets, and of the SD VAE."""

from dataclasses import dataclass

from roofline import Work

from kernel_bench.work import convolution_work
from saishiki.runtime.backends.convolution_tiles import TILES, ConvolutionShape, choose_tile

FP16_BYTES = 2
SMS = 128
"""Multiprocessors that tiles are chosen for, which decides how often a norm in front is computed."""


@dataclass(frozen=True)
class ConvolutionCase:
    """convolution, fp16, NHWC.

    Args:
        height: of the input, as is ``width``.
        taps: of one side; the padding keeps the size, or halves it where the stride is 2.
        norm: in front, with SiLU, its statistics given.
    """

    network: str
    batch: int
    channels: int
    height: int
    width: int
    filters: int
    taps: int = 3
    stride: int = 1
    residual: bool = False
    norm: bool = False

    op = "convolution"
    groups = 32

    @property
    def name(self) -> str:
        """As rows are labelled."""
        flags = {"stride 2": self.stride == 2, "residual": self.residual, "norm in front": self.norm}
        shape = f"{self.batch} x {self.channels} x {self.height} x {self.width} to {self.filters}"
        kind = f"{self.taps}x{self.taps}"
        return f"{self.network}: {shape}, {kind}" + "".join(f", {flag}" for flag, on in flags.items() if on)

    shape_name = name

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right."""
        return (self.taps // 2,) * 4

    @property
    def shape(self) -> ConvolutionShape:
        """All sizes."""
        return ConvolutionShape(
            self.batch,
            self.height,
            self.width,
            self.channels,
            self.filters,
            (self.taps, self.taps),
            self.stride,
            self.padding,
        )

    def work(self) -> Work:
        tile = TILES[choose_tile(self.shape, sms=SMS)]
        return convolution_work(
            self.shape,
            itemsize=FP16_BYTES,
            residual=self.residual,
            normalised=-(-self.filters // tile.filters) if self.norm else 0,
        )


def _animediffusion(channels: int, side: int, filters: int, **how: bool | int) -> ConvolutionCase:
    return ConvolutionCase("AnimeDiffusion 256 px", 1, channels, side, side, filters, **how)


CONVOLUTIONS: tuple[ConvolutionCase, ...] = (
    _animediffusion(64, 256, 64, residual=True),
    _animediffusion(64, 256, 64, residual=True, norm=True),
    _animediffusion(192, 256, 64),
    _animediffusion(128, 128, 128, residual=True),
    _animediffusion(256, 64, 256, residual=True),
    _animediffusion(512, 32, 512, residual=True),
    _animediffusion(512, 32, 512, residual=True, norm=True),
    _animediffusion(512, 32, 1536, taps=1),
    ConvolutionCase("SD2.1 512 px", 2, 320, 64, 64, 320, residual=True),
    ConvolutionCase("SD2.1 512 px", 2, 640, 32, 32, 640, stride=2),
    ConvolutionCase("SD2.1 512 px", 2, 1280, 8, 8, 1280, residual=True),
    # A linear layer: tokens are a picture of one column.
    ConvolutionCase("SD2.1 512 px", 1, 320, 8192, 1, 2560, taps=1),
    ConvolutionCase("SD VAE 512 px", 1, 512, 64, 64, 512, residual=True),
    ConvolutionCase("SD VAE 512 px", 1, 128, 512, 512, 128, residual=True),
)
TINY_CONVOLUTIONS: tuple[ConvolutionCase, ...] = (
    ConvolutionCase("tiny", 1, 32, 4, 3, 16, residual=True, norm=True),
    ConvolutionCase("tiny", 2, 16, 5, 3, 8, stride=2),
)

"""A convolution with residual and bias in one kernel, as cuDNN has it compiled already.

``y = half(conv(x, w) + residual + bias)``, products and sums in fp32, rounded once. The order matters: cuDNN's
precompiled engines have residual, then a bias vector in half precision, one for all images. A bias in fp32, one before
the residual, one per image, or a residual alone or with gaps is compiled by cuDNN when it is planned. NCHW strides are
transposed, and an input with gaps is repacked, in a workspace as large as the tensors: concatenations are written
densely. A layer without a bias is given zeros.

A step's time vector belongs into the bias: it is one vector per step and layer, known before the first step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from saishiki.runtime.backends.cudnn.layout import Layout, nhwc
from saishiki.runtime.backends.cudnn.operation import checked_channels, checked_sizes


@dataclass(frozen=True)
class Convolution:
    """Sizes of a convolution of (B, H, W, C) with filters (K, R, S, C), both half precision.

    Args:
        channels: C, a multiple of 8.
        filters: K, a multiple of 8; the bias is (K).
        kernel: R and S.
        stride: 1 or 2, along both axes.
        padding: rows of zeros above, columns left, rows below, columns right.
        residual: whether a tensor of the output's size is added before the bias.

    Raises ``ValueError`` for sizes that make no convolution, or that cuDNN has no fast kernels for.
    """

    batch: int
    height: int
    width: int
    channels: int
    filters: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    residual: bool = False

    compiled_when_planned: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checked_sizes(self, "batch", "height", "width")
        checked_channels(self, "channels", "filters")
        if self.stride not in (1, 2):
            raise ValueError(f"Convolution: stride is {self.stride!r}, expected 1 or 2")
        if len(self.kernel) != 2 or min(self.kernel) < 1:
            raise ValueError(f"Convolution: kernel is {self.kernel!r}, expected rows and columns, at least 1 each")
        if len(self.padding) != 4 or min(self.padding) < 0:
            expected = "top, left, bottom, right, none of them negative"
            raise ValueError(f"Convolution: padding is {self.padding!r}, expected {expected}")
        if min(self.output_size) < 1:
            raise ValueError(f"{self}: the kernel is larger than the padded picture")

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        top, left, bottom, right = self.padding
        rows, columns = self.kernel
        height = (self.height + top + bottom - rows) // self.stride + 1
        width = (self.width + left + right - columns) // self.stride + 1
        return height, width

    def layouts(self) -> Mapping[str, Layout]:
        """x (B, H, W, C), w (K, R, S, C), bias (K), perhaps residual, y (B, H', W', K), all dense."""
        y = nhwc(self.batch, self.filters, *self.output_size)
        inputs = {
            "x": nhwc(self.batch, self.channels, self.height, self.width),
            "w": nhwc(self.filters, self.channels, *self.kernel),
            "bias": nhwc(1, self.filters, 1, 1),
        }
        return inputs | ({"residual": y} if self.residual else {}) | {"y": y}

    def record(self, graph: Any, tensors: Mapping[str, Any]) -> Any:
        """Adds the convolution, the residual if there is one, and the bias, in this order."""
        top, left, bottom, right = self.padding
        y = graph.conv_fprop(
            tensors["x"],
            tensors["w"],
            pre_padding=[top, left],
            post_padding=[bottom, right],
            stride=[self.stride, self.stride],
            dilation=[1, 1],
        )
        if self.residual:
            y = graph.add(y, tensors["residual"])
        return graph.add(y, tensors["bias"])

"""A linear layer, planned as the convolution of a picture one pixel wide.

cuDNN's matmul graphs need cuBLAS and a driver to be planned, and compile a kernel where a residual follows. A 1x1
convolution has the same arithmetic, its kernels are there with bias and residual, and it is planned anywhere. Which of
them is faster on a GPU has not been measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.layout import Layout
from saishiki.runtime.backends.cudnn.operation import checked_channels, checked_sizes


@dataclass(frozen=True)
class Matmul:
    """Sizes of ``y = half(x w^T + residual + bias)``: x (M, K), w (N, K), bias (N), residual and y (M, N), all half.

    Args:
        rows: M, batch and tokens together.
        channels: K, a multiple of 8.
        filters: N, a multiple of 8.
    """

    rows: int
    channels: int
    filters: int
    residual: bool = False

    compiled_when_planned: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checked_sizes(self, "rows")
        checked_channels(self, "channels", "filters")

    @property
    def convolution(self) -> Convolution:
        """The same as a convolution."""
        return Convolution(1, self.rows, 1, self.channels, self.filters, (1, 1), residual=self.residual)

    def layouts(self) -> Mapping[str, Layout]:
        """x, w, bias, perhaps residual, y, as of :attr:`convolution`."""
        return self.convolution.layouts()

    def record(self, graph: Any, tensors: Mapping[str, Any]) -> Any:
        """Adds :attr:`convolution`."""
        return self.convolution.record(graph, tensors)

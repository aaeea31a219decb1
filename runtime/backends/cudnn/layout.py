"""How a tensor lies in memory, as cuDNN wants to be told."""

from dataclasses import dataclass

HALF_BYTES = 2


@dataclass(frozen=True)
class Layout:
    """Sizes of a half precision tensor in cuDNN's order of dims, and along each the elements from one to the next."""

    dims: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """From the first element to the end of the last."""
        reach = sum((size - 1) * stride for size, stride in zip(self.dims, self.strides, strict=True))
        return HALF_BYTES * (1 + reach)


def nhwc(batch: int, channels: int, height: int, width: int) -> Layout:
    """The layout of (B, H, W, C) as cuDNN names it: dims (B, C, H, W), channels next to each other."""
    strides = (height * width * channels, 1, width * channels, channels)
    return Layout((batch, channels, height, width), strides)

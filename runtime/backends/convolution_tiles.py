"""The sizes of a convolution, and the tile of our Triton kernel that suits them on a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass

MAX_NUMBERS = 2**31 - 1
"""In an image, or in the weights: places within one are int32."""
MAX_IMAGE_CHANNELS = 16
"""Of the fp32 images that a network begins with, all together."""


@dataclass(frozen=True)
class ConvolutionShape:
    """The sizes of a convolution; raises ``ValueError`` for those that no kernel takes.

    Args:
        height: of the input, in pixels, as is ``width``.
        channels: of the input, as the weights have them.
        filters: channels of the output.
        taps: height and width of the weights.
        padding: rows and columns of zeros: top, left, bottom, right.
    """

    batch: int
    height: int
    width: int
    channels: int
    filters: int
    taps: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)

    def __post_init__(self) -> None:
        sizes = (self.batch, self.height, self.width, self.channels, self.filters, *self.taps, self.stride)
        if min(sizes) < 1 or min(self.padding) < 0:
            raise ValueError(f"expected sizes and stride from 1 and padding from 0, got {self}")
        if self.out_height < 1 or self.out_width < 1:
            raise ValueError(f"the padded image is smaller than the {self.taps} weights: {self}")
        counts = {
            "image": self.height * self.width * self.channels,
            "output": self.out_height * self.out_width * self.filters,
            "weights": self.filters * self.taps[0] * self.taps[1] * self.channels,
        }
        for name, count in counts.items():
            if count > MAX_NUMBERS:
                raise ValueError(
                    f"expected at most {MAX_NUMBERS} numbers in the {name}, got {count}; use smaller sizes"
                )

    @property
    def out_height(self) -> int:
        """Of the output, in pixels."""
        return (self.height + self.padding[0] + self.padding[2] - self.taps[0]) // self.stride + 1

    @property
    def out_width(self) -> int:
        """Of the output, in pixels."""
        return (self.width + self.padding[1] + self.padding[3] - self.taps[1]) // self.stride + 1


@dataclass(frozen=True)
class Tile:
    """What a block computes, pixels by filters, in steps of so many channels; and how Triton compiles it."""

    pixels: int
    filters: int
    channels: int
    warps: int
    stages: int

    def blocks(self, shape: ConvolutionShape) -> int:
        """Of a launch; a block stays within one image."""
        pixels = shape.out_height * shape.out_width
        return shape.batch * -(-pixels // self.pixels) * -(-shape.filters // self.filters)


TILES: Mapping[str, Tile] = {
    "128x128": Tile(128, 128, 64, warps=8, stages=3),
    "128x64": Tile(128, 64, 64, warps=4, stages=3),
    # Where there are few blocks, each alone on its multiprocessor, a longer pipeline takes the place of a neighbour.
    "64x64": Tile(64, 64, 64, warps=4, stages=4),
}
NORM_TILES: Mapping[str, Tile] = {
    "128x128": Tile(128, 128, 64, warps=8, stages=3),
    # Eight warps: in four of them, every number on its way to be normalised would take all registers there are.
    "128x64": Tile(128, 64, 64, warps=8, stages=3),
    "64x64": Tile(64, 64, 64, warps=4, stages=3),
}
"""Where the norm in front is applied on the way in."""
NORM_TARGETS = ("sm80", "sm86", "sm89")
"""Where it is compiled, and put into plans. Every tap takes the exponentials again, for which the matrix units of an
H200 (sm90) would wait. An RTX 50 (sm120) has gained more in memory, which the fold saves, than in matrix units.
"""
FROM_IMAGES_TILE = Tile(128, 64, MAX_IMAGE_CHANNELS, warps=8, stages=3)
TO_IMAGE_TILE = Tile(128, 16, 64, warps=4, stages=3)

_READING = 32
"""What reading a number costs a block beside a multiplication; a guess between an RTX 4090 and an H200."""


def choose_tile(shape: ConvolutionShape, *, sms: int) -> str:
    """The name of the tile in :data:`TILES` that a GPU of so many multiprocessors should finish first with.

    A multiprocessor computes its blocks one after the other, each at the price of its products and of what it reads.
    """

    def price(name: str) -> int:
        tile = TILES[name]
        turns = -(-tile.blocks(shape) // sms)
        return turns * (tile.pixels * tile.filters + _READING * (tile.pixels + tile.filters))

    return min(TILES, key=price)

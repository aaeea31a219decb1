"""What each op of ``saishiki.kernels`` does for given shapes: operations, bytes and launches.

Bytes are those that device memory must give or take: what the blocks of one launch share is counted once, what a second
launch reads again is counted again. Operations are the kernel's own, so the keys that a mixed tile reads and masks
count; rows that pad the last tile do not.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from roofline import Work

from saishiki.runtime.backends.convolution_tiles import ConvolutionShape

Bools = npt.NDArray[np.bool_]  # (B, T)

FP32_BYTES = 4
INT32_BYTES = 4


def tiles_reading(needed: Bools, block: int) -> Bools:
    """Which tiles of ``block`` tokens hold a token that needs a region: (B, tiles) from (B, T)."""
    batch, tokens = needed.shape
    padded = np.zeros((batch, -(-tokens // block) * block), bool)
    padded[:, :tokens] = needed
    read: Bools = padded.reshape(batch, -1, block).any(-1)
    return read


def rows_of_tiles(tokens: int, block: int) -> npt.NDArray[np.int64]:
    """How many tokens each tile holds; the last may hold fewer than ``block``."""
    return np.minimum(block, tokens - np.arange(0, tokens, block))


@dataclass(frozen=True)
class Regions:
    """Which tokens need the foreground's and the background's keys or weights, (B, T) each, in tiles of ``block``."""

    foreground: Bools
    background: Bools
    block: int

    def in_order(self) -> "Regions":
        """The same tokens, those of one region behind the other's, as sorted by their masks.

        A foreground token may need the background's keys too.
        """
        order = np.argsort(self.foreground, axis=1, kind="stable")
        foreground, background = (np.take_along_axis(each, order, 1) for each in (self.foreground, self.background))
        return Regions(foreground, background, self.block)

    @property
    def mixed_share(self) -> float:
        """The share of tiles that read both."""
        return float((tiles_reading(self.foreground, self.block) & tiles_reading(self.background, self.block)).mean())

    @property
    def useful_share(self) -> float:
        """The share of what the tiles compute that some token needs, where both regions cost the same."""
        return int(self.foreground.sum() + self.background.sum()) / self.rows_times(1, 1)

    def rows_times(self, foreground: int, background: int) -> int:
        """The sum over tiles of rows times what they read: a number for each region."""
        read = tiles_reading(self.foreground, self.block) * np.int64(foreground)
        read += tiles_reading(self.background, self.block) * np.int64(background)
        return int((read * rows_of_tiles(self.foreground.shape[1], self.block)).sum())


def attention_work(
    regions: Regions,
    *,
    heads: int,
    width: int,
    fg_tokens: int,
    bg_tokens: int,
    q_bg: bool,
    itemsize: int,
    ordered: bool = False,
) -> Work:
    """masked_split_cross_attention: two products of ``width`` per query, key and head; q, k, v, mask in, one out.

    ``ordered`` adds the tokens' order to what is read.

    A region's k and v are read where any tile of the batch row reads the region.
    """
    batch, tokens = regions.foreground.shape
    keys_read = int(regions.foreground.any(1).sum()) * fg_tokens + int(regions.background.any(1).sum()) * bg_tokens
    rows = batch * tokens * (3 if q_bg else 2) + 2 * keys_read
    return Work(
        matrix_flops=4 * width * heads * regions.rows_times(fg_tokens, bg_tokens),
        vector_flops=0,
        nbytes=rows * heads * width * itemsize + batch * tokens * (FP32_BYTES + INT32_BYTES * ordered),
        launches=1,
    )


def projection_work(
    regions: Regions, *, channels_in: int, channels_out: int, itemsize: int, ordered: bool = False
) -> Work:
    """split_projection: one product for each region a tile holds; x, the weights that are needed and the mask in.

    ``ordered`` adds the tokens' order.
    """
    batch, tokens = regions.foreground.shape
    weights = int(regions.foreground.any()) + int(regions.background.any())
    elements = batch * tokens * (channels_in + channels_out) + weights * channels_in * channels_out
    return Work(
        matrix_flops=2 * channels_in * channels_out * regions.rows_times(1, 1),
        vector_flops=0,
        nbytes=elements * itemsize + batch * tokens * (FP32_BYTES + INT32_BYTES * ordered),
        launches=1,
    )


def sampler_work(elements: int, *, slots: int, itemsize: int, noise: bool, past: int, input_written: bool) -> Work:
    """fused_sampler_step on a state of ``elements`` numbers.

    The state is read and written in fp32, and so is the history of solvers that keep one: ``past`` is how many earlier
    x0 this step reads, and its own is written where ``past`` is not 0. The prediction is read, and the model input
    written, in every slot.
    """
    fp32 = 2 + noise + (past + 1 if past else 0)
    halves = slots * (2 if input_written else 1)
    guidance = {1: 0, 2: 3, 3: 8}[slots]
    # x0: 3 and two comparisons; the update: 5 of x, x0 and prediction, 2 for each further term; 1 scales the input.
    flops = guidance + 5 + 5 + 2 * past + 2 * noise + input_written
    return Work(0, elements * flops, elements * (fp32 * FP32_BYTES + halves * itemsize), launches=1)


def group_norm_work(
    *,
    batch: int,
    channels: tuple[int, ...],
    pixels: int,
    itemsize: int,
    upsample: bool = False,
    residual: bool = False,
    return_input: bool = False,
    sums: bool = False,
    silu: bool = True,
) -> Work:
    """group_norm_silu in two launches, statistics and apply; in one where ``sums`` are given.

    Args:
        channels: of x, and of what is concatenated to it.
        pixels: of the output; x has a quarter as many where it is upsampled, all else has as many.

    Both launches read each of the images that go in, once: a small x too where the statistics need all its repeats, as
    these lie at most a row apart and come from a cache. They need none where a small x is all that goes in. These reads
    and the writes are compulsory in two launches. Parameters, partial sums and embedding are left out.
    """
    large = batch * sum(channels) * pixels
    own = batch * channels[0] * (pixels // 4 if upsample else pixels)
    once = own + batch * sum(channels[1:]) * pixels + (large if residual else 0)
    counted = 0 if sums else own if upsample and len(channels) == 1 and not residual else large
    nbytes = once * (1 if sums else 2) + large * (2 if return_input else 1)
    return Work(0, 3 * counted + (6 if silu else 2) * large, nbytes * itemsize, launches=1 if sums else 2)


def convolution_work(shape: ConvolutionShape, *, itemsize: int, residual: bool, normalised: int) -> Work:
    """convolution: image, weights and residual in, one image out; a product for each tap, channel, filter and pixel.

    Products with the padding count: the kernel does them. So does the norm in front, with SiLU, as often as it is done:
    ``normalised`` times, once per tile of filters, for each tap of each pixel. Bias and parameters are left out.
    """
    out_pixels = shape.batch * shape.out_height * shape.out_width
    seen = out_pixels * shape.taps[0] * shape.taps[1] * shape.channels
    out = out_pixels * shape.filters
    weights = shape.filters * shape.taps[0] * shape.taps[1] * shape.channels
    moved = shape.batch * shape.height * shape.width * shape.channels + weights + out * (2 if residual else 1)
    vector_flops = 6 * seen * normalised + out * (2 if residual else 1)
    return Work(2 * seen * shape.filters, vector_flops, moved * itemsize, launches=1)

"""How ``group_norm_silu`` is divided among programs: pure Python, for the op and for who launches its cubins."""

import math
from dataclasses import dataclass

PIXEL_UNIT = 16
"""Programs start at multiples of this many pixels, so that loads of NCHW are wide."""
STATISTICS_PIXELS = 64
STATISTICS_CHANNELS = 32
STATISTICS_ROWS = 32
STATISTICS_STAGES = 4
APPLY_TILES = {True: (32, 64), False: (128, 16)}
"""Pixels and channels of a tile of the apply kernel, by whether channels lie last."""
PROGRAMS_PER_SM = 2
SMS_INTERPRETED = 2
"""Multiprocessors to plan for in Triton's interpreter, which runs programs one by one."""


@dataclass(frozen=True)
class Split:
    """The channels of one image, as the programs of the statistics kernel share them.

    A program takes a block of ``STATISTICS_CHANNELS``, wherever groups begin and end, so that every load is aligned. A
    *set* is what one program finishes: as few blocks as hold whole groups, or the whole image.

    Args:
        blocks: of an image; the last may have fewer channels.
        slices: blocks of a set; the last set may have fewer.
    """

    blocks: int
    slices: int

    @property
    def sets(self) -> int:
        """Of an image."""
        return -(-self.blocks // self.slices)


def split_channels(channels: int, groups: int) -> Split:
    """The blocks of an image, and the sets in which its groups are finished."""
    blocks = -(-channels // STATISTICS_CHANNELS)
    whole_groups = math.lcm(channels // groups, STATISTICS_CHANNELS)
    return Split(blocks, min(blocks, whole_groups // STATISTICS_CHANNELS))


def count_chunks(pixels: int, *, blocks: int, sms: int) -> int:
    """Into how many chunks the statistics kernel cuts an image, so that every multiprocessor has programs.

    Args:
        blocks: programs per chunk: ``Split.blocks`` times the batch.
    """
    wanted = -(-PROGRAMS_PER_SM * sms // blocks)
    pixels_per_chunk = -(-pixels // (wanted * PIXEL_UNIT)) * PIXEL_UNIT
    return -(-pixels // pixels_per_chunk)


def count_pixel_blocks(pixels: int, *, block_pixels: int, blocks: int, sms: int) -> int:
    """Into how many blocks of at most ``block_pixels`` the apply kernel cuts an image; of fewer where that is too few.

    Args:
        blocks: programs per block of pixels: the blocks of channels times the batch.
    """
    while block_pixels > PIXEL_UNIT and -(-pixels // block_pixels) * blocks < sms:
        block_pixels //= 2
    return -(-pixels // block_pixels)

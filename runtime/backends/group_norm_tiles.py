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

_VECTOR = 8  # numbers of fp16 in the widest load


@dataclass(frozen=True)
class Split:
    """The channels of one image, as the programs of the statistics kernel share them.

    A *set* is what one of them finishes: whole groups that fit a block of ``STATISTICS_CHANNELS``, or one wider group.

    Args:
        set_channels: of a set; the last set may have fewer.
        slices: blocks of a set, more than one only for a group wider than a block.
        blocks: sets times slices.
        unit: the power of two, at most 8, by which ``set_channels`` is divisible; loads are that many numbers wide.
    """

    set_channels: int
    slices: int
    blocks: int
    unit: int


def split_channels(channels: int, groups: int) -> Split:
    """Sets as large as fit a block, preferring those whose loads are aligned."""
    width = channels // groups
    if width > STATISTICS_CHANNELS:
        slices = -(-width // STATISTICS_CHANNELS)
        return Split(width, slices, groups * slices, math.gcd(width, _VECTOR))
    units = (unit for unit in (8, 4, 2, 1) if math.lcm(width, unit) <= STATISTICS_CHANNELS)
    unit = next(units)
    step = math.lcm(width, unit)
    set_channels = STATISTICS_CHANNELS // step * step
    return Split(set_channels, 1, -(-channels // set_channels), unit)


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

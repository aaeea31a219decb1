"""How strongly each of the U-Net's 16 cross-attentions speaks, as the published sliders set it."""

from collections.abc import Sequence

import numpy as np

from saishiki.runtime.signature import Array

BLOCKS = 16
ENCODER, MIDDLE, LOW = (0, 1, 2, 3, 4, 5), (2, 3, 10, 11, 12), (4, 5, 7, 8, 9)
"""Blocks of each slider, in the order in which they are written: a later group takes blocks from an earlier one."""


def strengths_of_levels(strength: float, levels: Sequence[float]) -> Array:
    """(16,) fp32: ``strength`` times the slider of the block's group (encoder, middle, low).

    As published the encoder's slider survives on blocks 0 and 1 only, and blocks 6, 13, 14 and 15 are never scaled.
    """
    strengths = np.ones(BLOCKS, np.float32)
    for blocks, level in zip((ENCODER, MIDDLE, LOW), levels, strict=True):
        strengths[list(blocks)] = strength * level
    return strengths


def strengths_of_blocks(sliders: Sequence[float], *, published: bool) -> Array:
    """(16,) fp32: one slider for each block.

    As published the list is cut one place too late: block i gets slider i + 1, and block 15 keeps a strength of 1.
    """
    strengths = np.array(sliders, np.float32)
    return np.append(strengths[1:], np.float32(1)) if published else strengths

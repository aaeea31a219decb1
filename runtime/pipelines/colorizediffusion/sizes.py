"""The size condition of v2's background and style encoders."""

import math

import numpy as np

from saishiki.runtime.signature import Array

WIDTH = 256


def size_embedding(picture_height: int, picture_width: int, height: int, width: int) -> Array:
    """(1, 512) fp32: sinusoids of ``picture height / height``, then of ``picture width / width``.

    picture_*: the original reference or background picture, px; height, width: the generated one. A picture smaller
    than that on either side counts as ``picture height + max(height, width)`` high and as wide as its aspect says.
    Source: tellurion-kanata/colorizeDiffusion c9bd9fb (its ratio embedder, behaviour).
    """
    counted_height, counted_width = float(picture_height), float(picture_width)
    if picture_height < height or picture_width < width:
        counted_height = float(picture_height + max(height, width))
        counted_width = picture_width / picture_height * counted_height
    return np.concatenate([_sinusoid(counted_height / height), _sinusoid(counted_width / width)])[None]


def _sinusoid(value: float) -> Array:
    """(256,) fp32: cosines first, frequencies from 1 down to nearly 1/10000."""
    half = WIDTH // 2
    frequencies = np.exp(np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half))
    angles = np.float32(value) * frequencies
    return np.concatenate([np.cos(angles), np.sin(angles)])

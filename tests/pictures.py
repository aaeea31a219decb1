"""Small pictures to colour: line drawings and references of any size."""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def draw_sketch(height: int, width: int, *, seed: int = 0) -> Pixels:
    """(H, W, 3): black straight lines on white paper."""
    sketch = np.full((height, width, 3), 255, np.uint8)
    rng = np.random.default_rng(seed)
    sketch[rng.integers(0, height, 3)] = 0
    sketch[:, rng.integers(0, width, 2)] = 0
    return sketch


def paint_reference(height: int, width: int, *, seed: int = 0) -> Pixels:
    """(H, W, 3): blocks of random colours."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return blocks[rows[:, None], columns]

"""What a benchmark colours and feeds: pictures and arrays drawn from a seed, the same on every machine."""

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.signature import Array, Signature, Sizes

Pixels = NDArray[np.uint8]

SEED = 7
_LINES = 12
_BLOCKS = 8


def draw_sketch(height: int, width: int) -> Pixels:
    """(H, W, 3): black lines on white paper, which pass for a line drawing."""
    rng = np.random.default_rng(SEED)
    sketch = np.full((height, width, 3), 255, np.uint8)
    sketch[rng.integers(0, height, min(_LINES, height // 8))] = 0
    sketch[:, rng.integers(0, width, min(_LINES, width // 8))] = 0
    return sketch


def paint_reference(height: int, width: int) -> Pixels:
    """(H, W, 3): blocks of random colours."""
    blocks = np.random.default_rng(SEED).integers(0, 256, (_BLOCKS, _BLOCKS, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * _BLOCKS // height, np.arange(width) * _BLOCKS // width
    return blocks[rows[:, None], columns]


def draw_inputs(signature: Signature, sizes: Sizes) -> dict[str, Array]:
    """Inputs of a module at given sizes: normal random numbers, and zeros for what is not a float."""
    rng = np.random.default_rng(SEED)
    inputs: dict[str, Array] = {}
    for spec in signature.inputs:
        shape, dtype = spec.shape(sizes), np.dtype(spec.dtype)
        inputs[spec.name] = rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
    return inputs

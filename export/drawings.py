"""Drawings made of ellipses, with their line art: inputs for range scans and certificates, much like the real ones."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ELLIPSES = 12
LINE = 0.06


def draw_pairs(batch: int, height: int, width: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Line drawings (B, 1, H, W) and coloured pictures (B, 3, H, W), fp32 in [-1, 1]; every one is another picture."""
    pairs = [_draw(np.random.default_rng((seed, i)), height, width) for i in range(batch)]
    lines, colours = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
    return lines, colours


def _draw(rng: np.random.Generator, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    colour = np.broadcast_to(rng.uniform(-1, 1, (3, 1, 1)), (3, height, width)).copy()
    line = np.ones((1, height, width))
    for _ in range(ELLIPSES):
        cx, cy = rng.uniform(-0.8, 0.8, 2)
        rx, ry = rng.uniform(0.1, 0.6, 2)
        distance = np.hypot((x - cx) / rx, (y - cy) / ry)
        colour = np.where(distance < 1, rng.uniform(-1, 1, (3, 1, 1)), colour)
        line = np.where(np.abs(distance - 1) < LINE, -1.0, np.where(distance < 1, 1.0, line))
    return line.astype(np.float32), colour.astype(np.float32)

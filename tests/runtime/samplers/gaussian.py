"""Images whose denoiser is known exactly: Gaussian with DEVIATION about MEAN; and noise levels to walk down."""

import math
from typing import Any

import numpy as np

DEVIATION, MEAN = 0.7, -0.3
SHAPE = (2, 3, 2, 2)


def falling(steps: int) -> np.ndarray:
    """From 10 to 0.02, evenly spaced in log, then 0."""
    return np.append(np.geomspace(10, 0.02, steps), 0.0)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape or SHAPE)


def denoise(x: Any, sigma: float) -> Any:
    """The exact x0 at a noise level."""
    return (DEVIATION**2 * x + sigma**2 * MEAN) / (DEVIATION**2 + sigma**2)


def flow(x: Any, sigma: float, following: float) -> Any:
    """Where the probability flow takes x, from one noise level to another."""
    return MEAN + (x - MEAN) * math.sqrt((DEVIATION**2 + following**2) / (DEVIATION**2 + sigma**2))

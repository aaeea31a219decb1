"""Seeded random weights under which the activations of a deep network stay near 1, as they do after training."""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NORM_SPREAD, BIAS_SPREAD = 0.1, 0.02
BY_ROWS = ("proj",)
"""Matrices that multiply from the right, by the last part of their name: their rows are what is summed over."""


def seeded_values(seed: int, *, device: str = "cpu") -> Callable[[str, Sequence[int]], Tensor]:
    """(name, shape) -> fp32 values: for the same name always the same, for another others.

    A weight of two or more dims is drawn with the variance 1 over its fan-in, the gain of a norm around 1, the rest
    around 0.
    """
    generator = torch.Generator(device)

    def values(name: str, shape: Sequence[int]) -> Tensor:
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:6], "little"))
        drawn = torch.randn(tuple(shape), generator=generator, device=device)
        if len(shape) > 1:
            return drawn.mul_(fan_in(name, shape) ** -0.5)
        if name.endswith("weight"):
            return drawn.mul_(NORM_SPREAD).add_(1.0)
        return drawn.mul_(BIAS_SPREAD)

    return values


def fan_in(name: str, shape: Sequence[int]) -> int:
    """How many products are summed for one output of the weight."""
    return shape[0] if name.rpartition(".")[2] in BY_ROWS else math.prod(shape[1:])

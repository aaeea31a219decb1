"""What a pipeline is: a family's modules put together into images."""

from dataclasses import dataclass
from typing import Protocol

from saishiki.runtime.backends.protocol import OnStep
from saishiki.runtime.noise import Noise
from saishiki.runtime.signature import Array


@dataclass(frozen=True)
class Sampling:
    """How to sample: the number of steps, eta (0 deterministic .. 1 as published), and what the run starts from."""

    steps: int
    eta: float
    start: str


class Pipeline(Protocol):
    """Turns prepared arrays into images. Thread-safe."""

    def check(self, sampling: Sampling) -> None:
        """Raises ``ValueError`` or ``TypeError`` for a way of sampling that the family does not have."""
        ...

    def __call__(self, sketch: Array, reference: Array, sampling: Sampling, noise: Noise, on_step: OnStep) -> Array:
        """(B, 3, H, W) fp32 about [-1, 1], from sketch (B, 1, H, W) and reference (B, 3, H, W) in [-1, 1]."""
        ...

"""A solver with its schedule worked out: all that a run needs besides the network and the noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.samplers.callbacks import Network, OnStep

Float32 = NDArray[np.float32]
Run = Callable[[Network, Any, Any, OnStep | None], Any]


@dataclass(frozen=True, eq=False)
class Solver:
    """A sampler at its noise levels. A run evaluates the network E times in S steps.

    Args:
        name: as users know it.
        timesteps: (E,) fp32 of every evaluation in order; not whole numbers where the noise levels lie between those
            of training.
        start_scale: the run begins at x = noise times this.
        first_input: the network's first input is x times this; the solver scales all later ones itself.
        noises: how many noises of variance 1 the steps draw, each of the shape of x.
        steps: S, what ``on_step`` counts.
        slots: G, how many predictions the network gives per input: 1 without guidance.
        table: (S, 13) fp32 rows of :mod:`saishiki.runtime.samplers.tables`, which walk as ``run`` does; None where the
            solver is not linear in what a row speaks of, or evaluates the network more than once in a step.
        run: (network, x, noise, on_step) to the image.
    """

    name: str
    timesteps: Float32
    start_scale: float
    first_input: float
    noises: int
    steps: int
    slots: int
    table: Float32 | None
    run: Run

    def sample(self, network: Network, x: Any, noise: Any | None, on_step: OnStep | None = None) -> Any:
        """The image, (B, C, H, W), from x of that shape.

        Args:
            network: ``network(model_input, e)``, (G * B, C, H, W) from (B, C, H, W): the prediction of evaluation e,
                the conditional slot first.
            noise: (noises, B, C, H, W), in the order in which it is drawn; None where ``noises`` is 0.
            on_step: called with (k, x) after every step; an exception it raises ends the run.

        Raises ``ValueError`` for another number of noises.
        """
        given = 0 if noise is None else len(noise)
        if given != self.noises:
            raise ValueError(f"{self.name}: expected {self.noises} noises for {self.steps} steps, got {given}")
        return self.run(network, x, noise, on_step)

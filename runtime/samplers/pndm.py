"""PNDM as diffusers' ``PNDMScheduler`` runs it: three Runge-Kutta steps of four evaluations, then multistep ones.

State and network input are the same, of variance 1. What the network predicts is combined as it came; a v becomes eps
at the start of the step, even where it was evaluated inside. Source: Liu et al., arXiv 2202.09778, eq. 9 and 12;
huggingface/diffusers, ``scheduling_pndm.py``, whose integer halves are kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.samplers.callbacks import Network, OnStep
from saishiki.runtime.samplers.parameterisation import Parameterisation, eps_from_prediction, guide
from saishiki.runtime.schedule import ddim_timesteps

Float32 = NDArray[np.float32]
RUNGE_KUTTA_STEPS = 3
MULTISTEP = (55 / 24, -59 / 24, 37 / 24, -9 / 24)
"""Weights of the predictions at the last four steps, the newest first."""


@dataclass(frozen=True)
class PNDMSchedule:
    """Where a run asks: ``t`` (S,) the timestep of each step, falling by ``stride``."""

    t: tuple[int, ...]
    stride: int

    @property
    def timesteps(self) -> tuple[int, ...]:
        """(S + 9,) of every evaluation, in order."""
        warm_up = (self.runge_kutta(k) for k in range(RUNGE_KUTTA_STEPS))
        return (*(t for four in warm_up for t in four), *self.t[RUNGE_KUTTA_STEPS:])

    def runge_kutta(self, k: int) -> tuple[int, int, int, int]:
        """The timesteps that step k of the first three asks at: its start, twice its middle, its end."""
        middle = self.t[k + 1] + self.stride // 2
        return self.t[k], middle, middle, self.t[k + 1]


def pndm_schedule(timesteps: int, steps: int) -> PNDMSchedule:
    """The schedule of a run; raises ``ValueError`` below 4 steps, where diffusers fails too, and above T - 1."""
    if steps <= RUNGE_KUTTA_STEPS:
        raise ValueError(f"expected at least {RUNGE_KUTTA_STEPS + 1} steps of PNDM, got {steps}")
    return PNDMSchedule(tuple(int(t) for t in ddim_timesteps(timesteps, steps)[0]), timesteps // steps)


def sample_pndm(
    network: Network,
    x: Any,
    gammas: Sequence[float],
    schedule: PNDMSchedule,
    how: Parameterisation,
    *,
    on_step: OnStep | None = None,
) -> Any:
    """The image, (B, C, H, W), from x of variance 1; ``gammas`` (T,) are those of training, the end is ``gammas[0]``.

    Raises ``ValueError`` where x0 is to be clamped: PNDM has none.
    """
    if how.clamp is not None:
        raise ValueError(f"expected no clamp, because PNDM does not go through x0; got {how.clamp}")

    def predict(x: Any, e: int) -> Any:
        return guide(network(x, e), how.scales(e))

    def move(x: Any, prediction: Any, t: int, following: int) -> Any:
        # Below the first timestep there is none, and diffusers stays at its gamma.
        return transfer(x, prediction, float(gammas[t]), float(gammas[max(following, 0)]), how)

    past: list[Any] = []
    for k, t in enumerate(schedule.t):
        if k < RUNGE_KUTTA_STEPS:
            _, _, middle, end = schedule.runge_kutta(k)
            newest = predict(x, 4 * k)
            second = predict(move(x, newest, t, t - schedule.stride // 2), 4 * k + 1)
            third = predict(move(x, second, t, middle), 4 * k + 2)
            fourth = predict(move(x, third, t, end), 4 * k + 3)
            combined = (newest + 2 * second + 2 * third + fourth) / 6
        else:
            newest = predict(x, k + 3 * RUNGE_KUTTA_STEPS)
            combined = sum(weight * of for weight, of in zip(MULTISTEP, [newest, *past], strict=True))
        past = [newest, *past[:2]]
        x = move(x, combined, t, t - schedule.stride)
        if on_step is not None:
            on_step(k, x)
    return x


def transfer(x: Any, prediction: Any, gamma: float, following: float, how: Parameterisation) -> Any:
    """x at another gamma by eq. 9, from the prediction at this one."""
    signal, noise = math.sqrt(gamma), math.sqrt(1 - gamma)
    eps = eps_from_prediction(x, prediction, how.prediction, signal=signal, noise=noise)
    scale = gamma * math.sqrt(1 - following) + signal * noise * math.sqrt(following)
    return math.sqrt(following / gamma) * x - ((following - gamma) / scale) * eps

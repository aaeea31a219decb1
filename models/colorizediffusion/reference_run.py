"""A whole run of the published network with its default sampler: what a bundle's runs are certified against.

It shares no code with the runtime: conditions are :mod:`conditions`', the U-Net takes every row of guidance by itself,
and diffusers' ``DPMSolverMultistepScheduler`` samples ("DPM-Solver++", Lu et al., arXiv 2211.01095).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saishiki.models.beside_cpu_torch import import_beside_cpu_torch
from saishiki.models.colorizediffusion.prediction import Prediction
from saishiki.runtime.pipelines.colorizediffusion import Guidance

SCALES: Mapping[Guidance, tuple[float, float]] = {
    "none": (1.0, 1.0),
    "reference": (4.0, 1.0),
    "sketch": (1.0, 2.5),
    "both": (4.0, 2.5),
}
"""Of the reference and of the sketch, in recorded runs."""

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x (B, 4, h, w), t (B,)) -> every row's prediction (slots * B, 4, h, w)."""


def sample(
    predict: Predict, start: Tensor, *, betas: Tensor, prediction: Prediction, guidance: Guidance, steps: int
) -> tuple[Tensor, Tensor]:
    """x after every step and the last one's alone: (S, B, 4, h, w) and (B, 4, h, w).

    The states are as samplers in noise levels have them: the image plus noise of the level, not scaled back to
    variance 1.

    Args:
        start: (B, 4, h, w) of variance 1; betas: (T,) of the schedule.
    """
    scheduler = published_scheduler(betas, prediction)
    scheduler.set_timesteps(steps)
    x, states = start, []
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[1:], strict=True):
        rows = predict(x, t.float().expand(len(x))).chunk(1 + sum(scale > 1 for scale in SCALES[guidance]))
        x = scheduler.step(guide(rows, guidance), t, x).prev_sample
        states.append(x * (sigma**2 + 1).sqrt())
    return torch.stack(states), x


def guide(rows: Sequence[Tensor], guidance: Guidance) -> Tensor:
    """The rows of a prediction as one: the mean of what each kind of guidance makes of them."""
    conditional, *others = rows
    scales = [scale for scale in SCALES[guidance] if scale > 1]
    guided = [other + scale * (conditional - other) for other, scale in zip(others, scales, strict=True)]
    return torch.stack(guided).mean(dim=0) if guided else conditional


def published_scheduler(betas: Tensor, prediction: Prediction) -> Any:
    """diffusers' scheduler as the published code sets it up."""
    diffusers = import_beside_cpu_torch("diffusers.schedulers.scheduling_dpmsolver_multistep")
    return diffusers.DPMSolverMultistepScheduler(
        trained_betas=betas.numpy(),
        num_train_timesteps=len(betas),
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
        timestep_spacing="leading",
        steps_offset=1,
    )

"""What a U-Net predicts, noise (eps) or velocity (v): as told, as the checkpoint states, or measured.

A file name says nothing here. At the noisiest timestep x_T is noise nearly alone. A network that predicts noise must
then give it back, so that its output correlates with x_T; one that predicts v = signal * noise - deviation * x_0
("Progressive Distillation for Fast Sampling of Diffusion Models", Salimans and Ho, arXiv 2202.00512) gives a picture
there, which does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saishiki.models.checkpoints import Checkpoint, CheckpointError
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from saishiki.models.colorizediffusion.stated import stated
from saishiki.models.family import LoadOptions
from saishiki.models.streaming import streamed_weights

Prediction = Literal["eps", "v"]

STATED_UNDER = ("prediction_type", "parameterization")
SPELLINGS: dict[str, Prediction] = {
    "eps": "eps",
    "epsilon": "eps",
    "v": "v",
    "v_prediction": "v",
    "v-prediction": "v",
}
WORDS = {"eps": "noise (eps)", "v": "velocity (v)"}

DIVIDE, NEEDED_MARGIN = 0.5, 0.25
NOISES, LATENT_SIDE = 4, 32


@dataclass(frozen=True)
class Measurement:
    """How the output at the noisiest timestep correlates with x_T: the least and greatest of several noises."""

    lowest: float
    highest: float

    @property
    def prediction(self) -> Prediction:
        """The side of the divide that the mean is on."""
        return "eps" if self.lowest + self.highest > 2 * DIVIDE else "v"

    @property
    def margin(self) -> float:
        """How far even the worst noise is on that side, not further than a correlation of 0 or 1 would be."""
        if self.prediction == "eps":
            return self.lowest - DIVIDE
        return DIVIDE - max(abs(self.lowest), abs(self.highest))

    def __str__(self) -> str:
        return (
            f"at the noisiest timestep its output correlates {self.lowest:.3f} to {self.highest:.3f} with x_T, a "
            f"margin of {self.margin:.3f} to the {DIVIDE} that divides eps from v (needed: {NEEDED_MARGIN})"
        )


def find_prediction(checkpoint: Checkpoint, options: LoadOptions, network: ColorizeDiffusion) -> tuple[Prediction, str]:
    """What the network predicts, and how that is known, in words: the option, else the metadata, else measured.

    Raises ``CheckpointError`` where the metadata names neither, or where the measurement is not clear.
    """
    said = stated_prediction(checkpoint)
    if options.prediction is not None:
        contradicted = "" if said in (None, options.prediction) else f", though the metadata states {said}"
        return options.prediction, f"the U-Net predicts {WORDS[options.prediction]}, as told{contradicted}"
    if said is not None:
        return said, f"the U-Net predicts {WORDS[said]}, as the checkpoint's metadata states"
    config = network.config
    measured = measure(lambda x, t: predict_blank(network, x, t), config.latent_channels, config.timesteps - 1)
    if not measured.margin >= NEEDED_MARGIN:
        raise CheckpointError(
            f"{checkpoint.path}: neither states nor shows whether its U-Net predicts noise (eps) or velocity (v): "
            f"{measured}; say which it was trained with: --prediction eps or --prediction v"
        )
    return measured.prediction, f"the U-Net predicts {WORDS[measured.prediction]}, as measured: {measured}"


def stated_prediction(checkpoint: Checkpoint) -> Prediction | None:
    """What the metadata states, or None where it states nothing.

    Raises ``CheckpointError`` for anything but eps or v.
    """
    values = {value for name in STATED_UNDER if (value := stated(checkpoint, name)) is not None}
    spelled = {SPELLINGS.get(str(value).lower()) for value in values}
    if not spelled:
        return None
    prediction = spelled.pop()
    if spelled or prediction is None:
        raise CheckpointError(
            f"{checkpoint.path}: its metadata states {' and '.join(sorted(map(repr, values)))} as "
            f"{' or '.join(STATED_UNDER)}, expected eps or v: say which with --prediction"
        )
    return prediction


def measure(predict: Callable[[Tensor, Tensor], Tensor], channels: int, timestep: int) -> Measurement:
    """Runs ``predict(x, t)`` once, on several noises (B, C, h, w) with t: (B,) at ``timestep``."""
    shape = (NOISES, channels, LATENT_SIDE, LATENT_SIDE)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = predict(x, torch.full((NOISES,), float(timestep)))
    correlations = torch.tensor([correlation(a, b) for a, b in zip(x, output, strict=True)])
    return Measurement(float(correlations.min()), float(correlations.max()))


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, over all elements; 0 where one of them does not vary, and NaN where one holds a NaN."""
    a, b = (values.double() - values.double().mean() for values in (a, b))
    scale = a.norm() * b.norm()
    return float((a * b).sum() / scale) if scale != 0 else 0.0


def predict_blank(network: ColorizeDiffusion, x: Tensor, t: Tensor) -> Tensor:
    """The U-Net's output for a blank sketch and no reference: x: (B, C, h, w), t: (B,) -> (B, C, h, w)."""
    height, width = (side * network.config.stride // network.config.latent_stride for side in x.shape[2:])
    with streamed_weights():
        hints = network.control_encoder(torch.full((1, 3, height, width), -1.0))
        context = torch.zeros(len(x), 1, network.config.context_dim)
        output: Tensor = network.unet(x, t, [hint.expand(len(x), -1, -1, -1) for hint in hints], context)
    return output

"""From a network's output to x0: guidance, what the network predicts, and clamping.

Guidance and the k-diffusion form of both predictions as published for ColorizeDiffusion (arXiv 2401.01456) and in
k-diffusion (crowsonkb/k-diffusion, ``external.py``); v is Salimans and Ho, arXiv 2202.00512.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

from saishiki.runtime.samplers.callbacks import Denoise, DenoiseAt, Network

Prediction = Literal["eps", "v"]
Scale = float | Sequence[float]

_X0: Mapping[str, Callable[[Any, Any, float, float], Any]] = {
    "eps": lambda x, prediction, signal, noise: (x - noise * prediction) / signal,
    "v": lambda x, prediction, signal, noise: signal * x - noise * prediction,
}
_EPS: Mapping[str, Callable[[Any, Any, float, float], Any]] = {
    "eps": lambda x, prediction, signal, noise: prediction,
    "v": lambda x, prediction, signal, noise: noise * x + signal * prediction,
}
_DENOISED: Mapping[str, Callable[[Any, Any, float], Any]] = {
    "eps": lambda x, prediction, sigma: x - sigma * prediction,
    "v": lambda x, prediction, sigma: x / (sigma**2 + 1) - prediction * (sigma / (sigma**2 + 1) ** 0.5),
}


@dataclass(frozen=True)
class Parameterisation:
    """How a network's output becomes x0.

    Args:
        prediction: what the network predicts.
        guidance: one scale for each unconditional slot behind the conditional one: ``()``, reference or sketch alone,
            or reference and sketch. A scale is a number, or one for every evaluation of the network; a scale of 1 is
            no guidance, which is how a guidance window ends.
        clamp: the least and the greatest x0, or None.

    Raises ``ValueError`` for another prediction, more than two scales or a clamp that is empty.
    """

    prediction: Prediction
    guidance: tuple[Scale, ...] = ()
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.prediction not in _X0:
            raise ValueError(f"expected a prediction of {' or '.join(_X0)}, got {self.prediction!r}")
        if len(self.guidance) > 2:
            raise ValueError(f"expected at most 2 guidance scales, one per unconditional slot, got {self.guidance}")
        if self.clamp is not None and not self.clamp[0] <= self.clamp[1]:
            raise ValueError(f"expected the clamp's low end first, got {self.clamp}")

    @property
    def slots(self) -> int:
        """G: how many predictions of the batch are in the model's output."""
        return 1 + len(self.guidance)

    def scales(self, k: int) -> tuple[float, ...]:
        """The guidance scales of evaluation k."""
        return tuple(float(scale if isinstance(scale, int | float) else scale[k]) for scale in self.guidance)

    def at(self, e: int) -> "Parameterisation":
        """The same with the scales of evaluation e alone."""
        return replace(self, guidance=self.scales(e))

    def limit(self, x0: Any) -> Any:
        """x0, clamped."""
        return x0 if self.clamp is None else x0.clip(*self.clamp)


def guide(prediction: Any, scales: Sequence[float]) -> Any:
    """(B, ...) from (G * B, ...): the mean over the unconditional slots of ``u + scale * (c - u)``.

    Args:
        prediction: the conditional slot c, then the unconditional ones; a slot is the whole batch.
        scales: one per unconditional slot; without any, the result is c.
    """
    if not scales:
        return prediction
    batch = len(prediction) // (1 + len(scales))
    conditional, *others = (prediction[slot * batch : (slot + 1) * batch] for slot in range(1 + len(scales)))
    guided = [other + scale * (conditional - other) for other, scale in zip(others, scales, strict=True)]
    return guided[0] if len(guided) == 1 else 0.5 * (guided[0] + guided[1])


def x0_from_prediction(x: Any, prediction: Any, kind: Prediction, *, signal: float, noise: float) -> Any:
    """x0 where ``x = signal * x0 + noise * eps``: ``(x - noise * eps) / signal``, or ``signal * x - noise * v``."""
    return _X0[kind](x, prediction, signal, noise)


def eps_from_prediction(x: Any, prediction: Any, kind: Prediction, *, signal: float, noise: float) -> Any:
    """The noise where ``x = signal * x0 + noise * eps``: the prediction, or ``noise * x + signal * v``."""
    return _EPS[kind](x, prediction, signal, noise)


def denoised_from_prediction(x: Any, prediction: Any, kind: Prediction, *, sigma: float) -> Any:
    """x0 where ``x = x0 + sigma * eps``: ``x - sigma * eps``, or ``x / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) * v``.

    The network was given ``x * input_scale(sigma)``.
    """
    return _DENOISED[kind](x, prediction, sigma)


def input_scale(sigma: float) -> float:
    """What x of the k-diffusion solvers is multiplied by to be the model's input: ``1 / sqrt(sigma^2 + 1)``."""
    return float((sigma**2 + 1) ** -0.5)


def denoise_at_sigmas(network: Network, sigmas: Sequence[float], how: Parameterisation) -> Denoise:
    """``denoise(x, k)`` for the k-diffusion solvers: guidance, x0 and clamping around a network."""

    def denoise(x: Any, k: int) -> Any:
        sigma = float(sigmas[k])
        prediction = network(x * input_scale(sigma), k)
        return how.limit(denoised_from_prediction(x, guide(prediction, how.scales(k)), how.prediction, sigma=sigma))

    return denoise


def denoise_in_turn(network: Network, how: Parameterisation) -> DenoiseAt:
    """``denoise(x, sigma)`` for a single run: the same, where the evaluations are numbered as they come."""
    turn = count()

    def denoise(x: Any, sigma: float) -> Any:
        e = next(turn)
        return denoise_at_sigmas(lambda model_input, _: network(model_input, e), [sigma], how.at(e))(x, 0)

    return denoise

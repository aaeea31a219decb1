"""A recorded run's arrays as scenes, so that a parity vector takes the same way as a user's pictures."""

from collections.abc import Mapping

from saishiki.runtime.pipelines.colorizediffusion.conditions import Needs
from saishiki.runtime.pipelines.colorizediffusion.options import ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.reference import keep_background
from saishiki.runtime.pipelines.colorizediffusion.scene import Picture, Posterior, Scene
from saishiki.runtime.signature import Array


def scenes_from_arrays(inputs: Mapping[str, Array], options: ColorizeDiffusionOptions, needs: Needs) -> list[Scene]:
    """A scene for every row of the inputs.

    Args:
        inputs: ``sketch`` (B, 3, H, W) fp32, bright on dark; ``reference`` and ``background`` (B, h, w, 3) uint8,
            ``reference_mask`` (B, h, w) and ``mask`` (B, 1, H/8, W/8) fp32 where the mode takes them;
            ``reference_noise_0``, ``reference_noise_1`` (B, 4, H/8, W/8) fp32, the noise of the VAE's draws in order.

    Raises ``KeyError`` for an input that the mode needs and the run has not.
    """
    return [_scene(inputs, i, options, needs) for i in range(len(inputs["sketch"]))]


def _scene(inputs: Mapping[str, Array], i: int, options: ColorizeDiffusionOptions, needs: Needs) -> Scene:
    sketch = inputs["sketch"][i : i + 1]
    height, width = sketch.shape[-2:]
    reference, background = _picture(inputs, "reference", i), _picture(inputs, "background", i)
    masked = needs.background and background is None
    return Scene(
        sketch=sketch,
        reference=reference,
        background=background,
        masked_reference=_masked(inputs, i, options.reference_threshold) if masked else None,
        mask=inputs["mask"][i : i + 1] if needs.mask else None,
        posterior=_posterior(inputs, i, options.reference_seed),
        box=(0, 0, width, height),
    )


def _picture(inputs: Mapping[str, Array], name: str, i: int) -> Picture | None:
    return Picture.of(inputs[name][i]) if name in inputs else None


def _masked(inputs: Mapping[str, Array], i: int, threshold: float) -> Picture:
    return Picture.of(keep_background(inputs["reference"][i], inputs["reference_mask"][i], threshold))


def _posterior(inputs: Mapping[str, Array], i: int, seed: int) -> Posterior:
    draws = tuple(inputs[name][i] for name in ("reference_noise_0", "reference_noise_1") if name in inputs)
    return Posterior(seed, draws or None)

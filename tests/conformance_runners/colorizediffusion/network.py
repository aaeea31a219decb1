"""Runs every ColorizeDiffusion case on the PyTorch networks, with the runtime's pictures, schedules and solvers."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saishiki.models import LoadOptions
from saishiki.models.colorizediffusion.conditions import Conditions, prepare_conditions
from saishiki.models.colorizediffusion.given import Pictures, Preparation
from saishiki.models.colorizediffusion.guided_rows import Attending, predict_rows, without_context
from saishiki.models.colorizediffusion.loading import load
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from saishiki.models.colorizediffusion.pictures import clip_pixels
from saishiki.models.colorizediffusion.vae import VAEDecoder, VAEEncoder, sample_latent
from saishiki.runtime.images import uint8_from_normalized
from saishiki.runtime.pipelines.colorizediffusion.strengths import strengths_of_levels
from saishiki.runtime.samplers import (
    Parameterisation,
    denoised_from_prediction,
    guide,
    input_scale,
    sigmas_from_gammas,
    solver_for,
    t_from_sigma,
)
from tests.conformance import Case, cases_of
from tests.conformance_runners.colorizediffusion.network_blocks import BLOCKS, checkpoint, named, numbered, tensors_of
from tests.conformance_runners.colorizediffusion.pictures import PICTURES
from tests.conformance_runners.colorizediffusion.schedules import SCHEDULES

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[Case], Arrays]

PredictRows = Callable[..., Tensor]
"""With the arguments of :func:`~saishiki.models.colorizediffusion.guided_rows.predict_rows`."""

LAST_TIMESTEP = 999


@cache
def network_of(family: str) -> ColorizeDiffusion:
    """The tiny network, loaded as users' checkpoints are."""
    # Whoever asks first, its tensors may be changed later.
    with torch.inference_mode(False):
        return load(checkpoint(family), LoadOptions()).network.requires_grad_(False)


@torch.inference_mode()
def run_image_encoder(case: Case) -> Arrays:
    inputs = tensors_of(case)
    encoder = network_of(case.family).cond_stage_model
    assert encoder is not None
    tokens = encoder(clip_pixels(inputs["image"], 224))
    return {"tokens_full": tokens.numpy(), "tokens_local": tokens[:, 1:].numpy()}


@torch.inference_mode()
def run_vae_encode(case: Case) -> Arrays:
    inputs = tensors_of(case)
    mean, logvar = VAEEncoder(network_of(case.family).first_stage_model)(inputs["image"])
    z = sample_latent(mean, logvar, inputs["noise"], scale_factor=case.params["scale_factor"])
    return {"mean": mean.numpy(), "logvar": logvar.numpy(), "z": z.numpy()}


@torch.inference_mode()
def run_vae_decode(case: Case) -> Arrays:
    return {"image": VAEDecoder(network_of(case.family).first_stage_model)(tensors_of(case)["z"]).numpy()}


@torch.inference_mode()
def run_prepare_conditions(case: Case) -> Arrays:
    prepared = conditions_of(case)
    results = named("control", prepared.hints) | named("uc_sketch_control", prepared.blank_hints)
    results |= named("hs_bg", prepared.maps or ()) | named("style_modulations", prepared.style or ())
    results |= {"context": prepared.context.numpy()}
    return results if prepared.mask is None else results | {"mask": prepared.mask.numpy()}


def conditions_of(case: Case) -> Conditions:
    """What a case of the preparation, or of the whole pipeline, prepares."""
    inputs, params = tensors_of(case), case.params
    prepared = prepare_conditions(
        network_of(case.family), pictures_of(inputs), preparation_of(params), noises=numbered(inputs, "vae_noise")
    )
    expected = {"fg": params.get("after_use_fg_lora"), "bg": params.get("after_use_bg_lora")}
    switched = {"fg": prepared.lora_fg, "bg": prepared.lora_bg}
    assert all(on is None or switched[region] == on for region, on in expected.items()), switched
    return prepared


def pictures_of(inputs: Mapping[str, Tensor]) -> Pictures:
    return Pictures(
        sketch=inputs["sketch"],
        reference=inputs.get("reference"),
        background=inputs.get("background"),
        reference_mask=inputs.get("rmask"),
        sketch_mask=inputs.get("smask"),
    )


def preparation_of(params: Mapping[str, Any]) -> Preparation:
    enhanced = {name: params.get(name, False) for name in ("style_enhance", "bg_enhance", "fg_enhance")}
    return Preparation(
        **enhanced,
        control_scale=params["control_scale" if "control_scale" in params else "ctl_scale"],
        merge_scale=params["merge_scale"],
        background_factor=params["mask_scale"],
        reference_threshold=params["mask_threshold_ref"],
        sketch_threshold=params["mask_threshold_sketch"],
    )


@cache
def published_conditions(family: str, name: str) -> Conditions:
    """The recorded outputs of a case of the preparation, with the LoRAs that it leaves on."""
    (case,) = (case for case in cases_of(family) if case.name == name)
    stored = {name: torch.from_numpy(array) for name, array in case.outputs.items()}
    return Conditions(
        hints=tuple(numbered(stored, "control")),
        blank_hints=tuple(numbered(stored, "uc_sketch_control")),
        context=stored["context"],
        mask=stored.get("mask"),
        maps=tuple(numbered(stored, "hs_bg")) or None,
        style=tuple(numbered(stored, "style_modulations")) or None,
        lora_fg=case.params.get("after_use_fg_lora", False),
        lora_bg=case.params.get("after_use_bg_lora", False),
    )


def given_conditions(case: Case) -> Conditions:
    return published_conditions(case.family, case.params["conditions_from"]).repeat(case.params["batch"])


def attending(params: Mapping[str, Any]) -> Attending:
    return Attending(
        strengths=params.get("reference_scales"),
        fg_scale=params["fg_scale"],
        bg_scale=params["bg_scale"],
        merge_scale=params["merge_scale"],
        threshold=params["mask_threshold"],
    )


def parameterisation_of(params: Mapping[str, Any], guidance: str) -> Parameterisation:
    reference, sketch = params["gs"]
    scales = {"none": (), "reference": (reference,), "sketch": (sketch,), "both": (reference, sketch)}
    return Parameterisation(params["parameterization"], scales[guidance])


@torch.inference_mode()
def run_cfg_denoiser(case: Case, predict_rows: PredictRows = predict_rows) -> Arrays:
    """One evaluation at noise levels that differ over the batch, on the k-diffusion path."""
    inputs, params, network = tensors_of(case), case.params, network_of(case.family)
    x, sigmas = inputs["x"], inputs["sigma"].tolist()
    how = parameterisation_of(params, params["guidance"])
    t = torch.from_numpy(t_from_sigma(case.inputs["sigma"], sigmas_from_gammas(gammas_of(network))))
    scaled = x * torch.tensor([input_scale(sigma) for sigma in sigmas])[:, None, None, None]
    rows = predict_rows(
        network.unet, scaled, t, given_conditions(case), guidance=params["guidance"], how=attending(params)
    )
    guided = guide(rows, how.guidance)
    denoised = [
        denoised_from_prediction(*pair, how.prediction, sigma=sigma)
        for *pair, sigma in zip(x, guided, sigmas, strict=True)
    ]
    return {"denoised": torch.stack(denoised).numpy(), "unet_out": rows.numpy()}


def gammas_of(network: ColorizeDiffusion) -> np.ndarray:
    return network.get_buffer("alphas_cumprod").numpy()


@torch.inference_mode()
def run_sample(case: Case, predict_rows: PredictRows = predict_rows) -> Arrays:
    params = case.params
    return sample(case, given_conditions(case), params["guidance"], attending(params), predict_rows)


def sample(
    case: Case, conditions: Conditions, guidance: Any, how: Attending, predict_rows: PredictRows = predict_rows
) -> dict[str, np.ndarray]:
    """The latent after a run, and what the U-Net was given at every evaluation."""
    network, params, inputs = network_of(case.family), case.params, tensors_of(case)
    solver = solver_for(
        params["sampler"],
        scheduler=params["scheduler"],
        steps=params["steps"],
        alphas_cumprod=gammas_of(network),
        how=parameterisation_of(params, guidance),
    )
    is_open = windows(params, solver.timesteps, latches=case.family == "colorizediffusion-v1")
    seen = []

    def predict(model_input: Tensor, e: int) -> Tensor:
        seen.append(model_input)
        given = conditions if is_open[e] else without_context(conditions)
        t = torch.full((len(model_input),), float(solver.timesteps[e]))
        return predict_rows(network.unet, model_input, t, given, guidance=guidance, how=how)

    z = solver.sample(predict, inputs["init_noise"] * solver.start_scale, inputs.get("step_noise"))
    return {"z": z.numpy(), "unet_x": torch.stack(seen).numpy(), "unet_t": solver.timesteps}


def windows(params: Mapping[str, Any], timesteps: np.ndarray, *, latches: bool) -> np.ndarray:
    """(E,) bool: whether each evaluation sees the reference. Only v1 has windows, and one that closed stays closed."""
    if not latches or "guidance_steps" not in params:
        return np.ones(len(timesteps), bool)
    (start, end), (no_start, no_end) = params["guidance_steps"], params["no_guidance_steps"]
    done = 1 - timesteps / LAST_TIMESTEP
    is_closed = (done < start) | (done > end) | ((no_start <= done) & (done <= no_end))
    return ~np.maximum.accumulate(is_closed)


@torch.inference_mode()
def run_pipeline(case: Case) -> Arrays:
    """From pictures and recorded noise to the image."""
    params = case.params
    reference, sketch = params["gs"]
    guidance = {(False, False): "none", (True, False): "reference", (False, True): "sketch", (True, True): "both"}
    how = Attending(
        strengths=strengths_of(params["strength"]),
        fg_scale=params["effective_fg_scale"],
        bg_scale=params["effective_bg_scale"],
        merge_scale=params["merge_scale"],
        threshold=params["mask_threshold_sketch"],
    )
    conditions = conditions_of(case).repeat(params["batch"])
    z = sample(case, conditions, guidance[reference > 1, sketch > 1], how)["z"]
    image = VAEDecoder(network_of(case.family).first_stage_model)(torch.from_numpy(z)).numpy()
    return {"z": z, "image": image, "uint8_hwc": uint8_from_normalized(image)}


def strengths_of(stated: Any) -> list[float]:
    """A single strength is the reference's, with all sliders at 1."""
    if isinstance(stated, dict):
        assert stated["level_control"]
        return strengths_of_levels(1.0, [stated["scales"][group] for group in ("encoder", "middle", "low")]).tolist()
    return strengths_of_levels(stated, (1.0, 1.0, 1.0)).tolist()


NETWORK: Mapping[str, Runner] = {
    **PICTURES,
    **BLOCKS,
    **SCHEDULES,
    "image_encoder": run_image_encoder,
    "vae_encode": run_vae_encode,
    "vae_decode": run_vae_decode,
    "prepare_conditions": run_prepare_conditions,
    "cfg_denoiser": run_cfg_denoiser,
    "sample": run_sample,
    "pipeline": run_pipeline,
}
"""By the kind of a case."""

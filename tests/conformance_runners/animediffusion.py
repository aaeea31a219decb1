"""Runs the AnimeDiffusion cases: on the PyTorch network, and on the exported fp32 ONNX through the runtime."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from saishiki.export import ExportRequest, export_bundle, parse_profiles
from saishiki.models import LoadOptions, read_checkpoint
from saishiki.models.animediffusion import AnimeDiffusion, config_from_checkpoint, load
from saishiki.models.animediffusion.network import sinusoid
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.canvas import fit_canvas, place
from saishiki.runtime.images import grey_from_rgb, normalized_from_uint8, uint8_from_normalized
from saishiki.runtime.noise import Noise
from saishiki.runtime.pipelines import AnimeDiffusionPipeline, Sampling
from saishiki.runtime.samplers import ddpm_step, noise_image, noise_reference, sample_ddim, walk_forward
from saishiki.runtime.schedule import BUFFERS, DiffusionSchedule, ddim_schedule, linear_betas, schedule_buffers
from saishiki.runtime.thin_plate_spline import ControlPoints, sample_map, warp_image
from saishiki.runtime.xdog import extract_lines
from tests.conformance import FOLDER, Case
from tests.conformance_runners.backends import Name, current_backend, opened
from tests.conformance_runners.folders import folder_of

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[Case], Arrays]

CHECKPOINT = FOLDER / "animediffusion" / "tiny.safetensors"


def run_diffusion_schedule(case: Case) -> Arrays:
    params = case.params
    return schedule_buffers(linear_betas(params["time_step"], params["linear_start"], params["linear_end"]))


def run_ddim_schedule(case: Case) -> Arrays:
    steps = case.params["time_steps"]
    deterministic = ddim_schedule(stored_schedule(), steps=steps, eta=0.0)
    published = ddim_schedule(stored_schedule(), steps=steps, eta=1.0)
    return {
        "t": deterministic.t,
        "t_prev": deterministic.t_prev,
        "gamma_t": deterministic.gamma_t,
        "gamma_prev": deterministic.gamma_prev,
        "sigma_eta1": published.sigma,
        "dir_coef_eta0": deterministic.eps_coefficient,
        "dir_coef_eta1": published.eps_coefficient,
    }


def run_q_sample(case: Case) -> Arrays:
    inputs = case.inputs
    return {"x_t": noise_image(inputs["x_0"], inputs["noise"], stored_schedule().gammas[case.params["t"]])}


def run_unseen_transform(case: Case) -> Arrays:
    # The case gives the mixture of reference and sketch as x_0 already.
    x_0, noise, t = case.inputs["x_0"], case.inputs["noise"], case.params["t"]
    if t == stored_schedule().timesteps // 2:
        return {"x_t": noise_reference(x_0, x_0, noise, stored_schedule())}
    return {"x_t": noise_image(x_0, noise, stored_schedule().gammas[t])}


def run_xdog(case: Case) -> Arrays:
    params = case.params
    line = extract_lines(
        case.inputs["rgb"],
        sigma=params["sigma"],
        k=params["k_sigma"],
        p=params["p"],
        epsilon=params["epsilon"],
        phi=params["phi"],
    )
    return {"line": line}


def run_reference_transform(case: Case) -> Arrays:
    placed = _cropped(case.inputs["rgb"], case.params["size"])
    return {"x_ref": normalized_from_uint8(placed).transpose(2, 0, 1)[None]}


def run_condition_transform(case: Case) -> Arrays:
    placed = _cropped(case.inputs["gray"], case.params["size"])
    return {"x_con": normalized_from_uint8(placed)[None, None]}


def _cropped(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    canvas = fit_canvas(width, height, target_height=size, target_width=size, mode="crop")
    return place(canvas, image, fill="edge")


def run_grey(case: Case) -> Arrays:
    grey = grey_from_rgb(case.inputs["rgb"])
    np.testing.assert_array_equal(grey, np.asarray(Image.fromarray(case.inputs["rgb"]).convert("L")))
    return {"gray": grey}


def run_warp(case: Case) -> Arrays:
    points = ControlPoints(**case.params)
    rgb = case.inputs["rgb"]
    map_x, map_y = sample_map(points, *rgb.shape[:2])
    return {"map_x": map_x, "map_y": map_y, "warped": warp_image(rgb, points)}


def run_postprocess(case: Case) -> Arrays:
    return {"u8": uint8_from_normalized(case.inputs["x"])}


PICTURES_AND_TABLES: Mapping[str, Runner] = {
    "diffusion_schedule": run_diffusion_schedule,
    "ddim_schedule": run_ddim_schedule,
    "q_sample": run_q_sample,
    "unseen_transform": run_unseen_transform,
    "XDoG": run_xdog,
    "tf_ref": run_reference_transform,
    "tf_con": run_condition_transform,
    "PIL convert L": run_grey,
    "warp_image": run_warp,
    "tensor2PIL": run_postprocess,
}


@cache
def stored_schedule() -> DiffusionSchedule:
    """The schedule as the tiny checkpoint stores it."""
    tensors = read_checkpoint(CHECKPOINT).tensors
    return DiffusionSchedule({name: tensors[name].numpy() for name in BUFFERS})


@cache
def network() -> AnimeDiffusion:
    checkpoint = read_checkpoint(CHECKPOINT)
    return load(checkpoint, config_from_checkpoint(checkpoint, attention_head=None))


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@torch.inference_mode()
def run_time_embedding(case: Case) -> Arrays:
    unet = network().denoise_fn
    embedded = sinusoid(torch.from_numpy(case.inputs["t"]), case.params["dimension"])
    return {"sinusoid": embedded.numpy(), "mlp": unet.time_embedding(embedded).numpy()}


@torch.inference_mode()
def run_network(case: Case) -> Arrays:
    unet = network().denoise_fn
    taps: dict[str, np.ndarray] = {}
    handles = [
        unet.get_submodule(name).register_forward_hook(_tap(taps, name)) for name in case.outputs if name != "eps"
    ]
    try:
        taps["eps"] = unet(**_tensors(case.inputs)).numpy()
    finally:
        for handle in handles:
            handle.remove()
    return taps


def _tap(taps: dict[str, np.ndarray], name: str) -> Callable[[Any, Any, torch.Tensor], None]:
    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        taps[name] = output.numpy()

    return keep


@torch.inference_mode()
def run_self_attention(case: Case) -> Arrays:
    return {"y": network().denoise_fn.bottom_block[1](torch.from_numpy(case.inputs["x"])).numpy()}


Predict = Callable[[np.ndarray, np.ndarray, int | None], np.ndarray]
"""Noise predicted from x: (B, 3, H, W), condition: (B, 4, H, W) and a timestep, or None for no time at all."""


@torch.inference_mode()
def predict_with_network(x: np.ndarray, condition: np.ndarray, t: int | None) -> np.ndarray:
    joined = torch.from_numpy(np.concatenate([x, condition], axis=1))
    steps = None if t is None else torch.full((len(x),), t)
    return network().denoise_fn(joined, steps).numpy()


def predict_with_bundle(x: np.ndarray, condition: np.ndarray, t: int | None) -> np.ndarray:
    loaded = pipeline()
    if t is None:
        return loaded.denoise_untimed(x, condition)
    time = loaded.time_projection(t=np.full(len(x), t, np.float32))["time"]
    return loaded.denoiser(noisy=x, condition=condition, time=time)["eps"]


def ddim_runner(predict: Predict) -> Runner:
    def run(case: Case) -> Arrays:
        inputs, params = case.inputs, case.params
        tables = ddim_schedule(stored_schedule(), steps=params["time_steps"], eta=params["eta"])
        states: list[np.ndarray] = []
        x_0 = sample_ddim(
            lambda x, k: predict(x, inputs["x_cond"], int(tables.t[k])),
            inputs["x_T"],
            tables,
            noise=inputs.get("noise"),
            on_step=lambda _, x: states.append(x),
        )
        return {"x_0": x_0, "trajectory": np.stack(states)}

    return run


def ddpm_step_runner(predict: Predict) -> Runner:
    def step(inputs: Arrays, eta: int) -> np.ndarray:
        (t,) = (int(value) for value in inputs["t"])
        eps = predict(inputs["x_t"], inputs["x_cond"], t)
        return ddpm_step(inputs["x_t"], eps, stored_schedule(), t, eta=eta, noise=inputs["noise"])

    def run(case: Case) -> Arrays:
        singles = [
            {name: array[i : i + 1] for name, array in case.inputs.items()} for i in range(len(case.inputs["t"]))
        ]
        return {f"eta{eta}": np.concatenate([step(single, eta) for single in singles]) for eta in (0, 1)}

    return run


def ddpm_runner(predict: Predict) -> Runner:
    def run(case: Case) -> Arrays:
        inputs, params = case.inputs, case.params
        steps = params["time_steps"]
        noises = inputs.get("noise", np.zeros((steps, *inputs["x_T"].shape), np.float32))
        x, states = inputs["x_T"], []
        for noise, t in zip(noises, reversed(range(steps)), strict=True):
            eps = predict(x, inputs["x_cond"], t)
            x = ddpm_step(x, eps, stored_schedule(), t, eta=params["eta"], noise=noise)
            states.append(x)
        return {"x_0": x, "snapshots": np.stack([states[i] for i in params.get("snapshot_iterations", [])] or [x])}

    return run


def walk_runner(predict: Predict) -> Runner:
    def run(case: Case) -> Arrays:
        inputs = case.inputs
        tables = ddim_schedule(stored_schedule(), steps=case.params["time_steps"], eta=0.0)
        walked = walk_forward(
            lambda x: predict(x, inputs["x_cond"], None),
            inputs["x_0"],
            inputs["noise"],
            tables,
            stored_schedule().gammas,
        )
        return {"x_T": walked}

    return run


def run_pipeline_on_network(case: Case) -> Arrays:
    inputs, params = case.inputs, case.params
    condition = np.concatenate([inputs["x_con"], inputs["x_ref"]], axis=1)
    tables = ddim_schedule(stored_schedule(), steps=params["time_steps"], eta=params["eta"])
    x_0 = sample_ddim(
        lambda x, k: predict_with_network(x, condition, int(tables.t[k])),
        inputs["x_T"],
        tables,
        noise=inputs.get("noise"),
    )
    return {"x_0": x_0, "image": uint8_from_normalized(x_0)}


@cache
def bundle() -> Bundle:
    """The tiny checkpoint, exported by this process."""
    request = ExportRequest(
        checkpoint=CHECKPOINT,
        output=folder_of("animediffusion") / "tiny.saishiki",
        targets=(),
        profiles=parse_profiles(["64"], "1"),
        load=LoadOptions(),
    )
    return Bundle.open(export_bundle(request).bundle)


def pipeline() -> AnimeDiffusionPipeline:
    """The tiny checkpoint, loaded by the runtime in fp32."""
    return _pipeline_on(current_backend())


@cache
def _pipeline_on(backend: Name) -> AnimeDiffusionPipeline:
    return AnimeDiffusionPipeline.load(bundle(), opened(bundle(), backend), "fp32")


def looks_inside(case: Case) -> bool:
    """Whether a case of the denoiser wants outputs that an exported graph does not have."""
    return case.module == "denoise_fn" and "eps" not in case.outputs


def run_exported_denoiser(case: Case) -> Arrays:
    x, t = case.inputs["x"], case.inputs.get("t")
    noisy, condition = np.ascontiguousarray(x[:, :3]), np.ascontiguousarray(x[:, 3:])
    if t is None:
        return {"eps": pipeline().denoise_untimed(noisy, condition)}
    time = pipeline().time_projection(t=t.astype(np.float32))["time"]
    return {"eps": pipeline().denoiser(noisy=noisy, condition=condition, time=time)["eps"]}


def run_exported_pipeline(case: Case) -> Arrays:
    inputs, params = case.inputs, case.params
    sampling = Sampling(steps=params["time_steps"], eta=params["eta"], start="noise")
    noise = Noise(start=inputs["x_T"], steps=inputs.get("noise"))
    x_0 = pipeline()(inputs["x_con"], inputs["x_ref"], sampling, noise, lambda k, x: None)
    return {"x_0": x_0, "image": uint8_from_normalized(x_0)}


NETWORK: Mapping[str, Runner] = {
    **PICTURES_AND_TABLES,
    "time_embedding": run_time_embedding,
    "denoise_fn": run_network,
    "denoise_fn.bottom_block.1": run_self_attention,
    "inference_ddim": ddim_runner(predict_with_network),
    "p_sample": ddpm_step_runner(predict_with_network),
    "inference": ddpm_runner(predict_with_network),
    "fix_forward": walk_runner(predict_with_network),
    "pipeline": run_pipeline_on_network,
}

BUNDLE: Mapping[str, Runner] = {
    "denoise_fn": run_exported_denoiser,
    "inference_ddim": ddim_runner(predict_with_bundle),
    "p_sample": ddpm_step_runner(predict_with_bundle),
    "inference": ddpm_runner(predict_with_bundle),
    "fix_forward": walk_runner(predict_with_bundle),
    "pipeline": run_exported_pipeline,
}

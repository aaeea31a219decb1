"""Runs ColorizeDiffusion cases on exported fp32 ONNX, through the runtime."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from saishiki.models.colorizediffusion.conditions import Conditions
from saishiki.runtime.backends.protocol import no_progress
from saishiki.runtime.images import uint8_from_normalized
from saishiki.runtime.noise import Noise
from saishiki.runtime.options import options_from
from saishiki.runtime.pipelines.colorizediffusion import ColorizeDiffusionOptions, ColorizeDiffusionPipeline
from saishiki.runtime.pipelines.colorizediffusion.conditions import conditions_of, needs_of
from saishiki.runtime.pipelines.colorizediffusion.encoders import Encoders, scaled
from saishiki.runtime.pipelines.colorizediffusion.reference import clip_pixels
from saishiki.runtime.pipelines.colorizediffusion.replay import scenes_from_arrays
from saishiki.runtime.pipelines.colorizediffusion.scene import Scene
from saishiki.runtime.pipelines.colorizediffusion.sketch import empty_sketch
from saishiki.runtime.signature import Array
from tests.conformance import Case
from tests.conformance_runners.colorizediffusion import network
from tests.conformance_runners.colorizediffusion.bundle_rows import place_of, rows_on_bundle
from tests.conformance_runners.colorizediffusion.pictures import rgb
from tests.conformance_runners.colorizediffusion.tiny_bundles import generation_of, pipeline_of
from tests.runtime.pipelines.colorizediffusion.cases import arrays_of, settings_of

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[Case], Arrays]


def call(case: Case, module: str, **inputs: Array) -> dict[str, Array]:
    return pipeline_of(generation_of(case)).modules.call(module, **inputs)


def run_image_encoder(case: Case) -> Arrays:
    tokens = call(case, "image_encoder", pixels=clip_pixels(rgb(case, "image")))["tokens"]
    return {"tokens_full": tokens, "tokens_local": tokens[:, 1:]}


def run_sketch_encoder(case: Case) -> Arrays:
    sketch = case.inputs["sketch"]
    rows = [call(case, "sketch_encoder", sketch=row) for row in (sketch, np.full_like(sketch, -1.0))]
    return {f"hint{i}": np.concatenate([row[f"hint_{i}"] for row in rows]) for i in range(5)}


def run_vae_encode(case: Case) -> Arrays:
    moments = call(case, "vae_encoder", image=case.inputs["image"])
    deviation = np.exp(moments["logvar"] / 2)
    z = case.params["scale_factor"] * (moments["mean"] + deviation * case.inputs["noise"])
    return {**moments, "z": z.astype(np.float32)}


def run_vae_decode(case: Case) -> Arrays:
    return call(case, "vae_decoder", z=case.inputs["z"])


def run_cluster_transformer(case: Case) -> Arrays:
    rows = [call(case, "cluster_transformer", tokens=row[None])["clustered"] for row in case.inputs["tokens"]]
    return {"tokens": np.concatenate(rows)}


def run_threshold_embedder(case: Case) -> Arrays:
    return {"emb": call(case, "threshold_embedder", thresholds=case.inputs["threshold"])["embedding"]}


def run_background_encoder(case: Case) -> Arrays:
    maps = call(case, "background_encoder", **_latent_and_context(case))
    return {f"hs{i}": maps[name] for i, name in enumerate(sorted(maps))}


def run_style_encoder(case: Case) -> Arrays:
    (style,) = call(case, "style_encoder", **_latent_and_context(case)).values()
    ends = np.cumsum([case.outputs[f"style{i}"].shape[1] for i in range(12)])[:-1]
    return {f"style{i}": vector for i, vector in enumerate(np.split(style, ends, axis=1))}


def _latent_and_context(case: Case) -> Arrays:
    return {"z": case.inputs["z"], "context": case.inputs["context"], "size": case.inputs["y"]}


def run_prepare_conditions(case: Case) -> Arrays:
    pipeline = pipeline_of(generation_of(case))
    (scene,), options = scenes_and_options(pipeline, case)
    encoders, cache = Encoders(pipeline.modules, pipeline.reference_cache), pipeline.reference_cache
    made = conditions_of(scene, options, pipeline.generation, encoders)
    got = {"context": np.concatenate([cache(node)["tokens"] for node in made.contexts], axis=1), "mask": scene.mask}
    height, width = scene.size
    for prefix, sketch in (("", scene.sketch), ("uc_sketch_", empty_sketch(height=height, width=width).pixels)):
        hints = cache(encoders.hints(sketch))
        got |= {f"{prefix}control{i}": hints[f"hint_{i}"] * options.control_scale for i in range(5)}
    if made.maps is not None:
        maps = scaled(cache(made.maps), options.background_factor)
        got |= {f"hs_bg{i}": maps[name] for i, name in enumerate(sorted(maps))}
    if made.style is not None:
        ends = np.cumsum([case.outputs[f"style_modulations{i}"].shape[1] for i in range(12)])[:-1]
        vectors = np.split(cache(made.style)["style"], ends, axis=1)
        got |= {f"style_modulations{i}": vector for i, vector in enumerate(vectors)}
    return got


def scenes_and_options(pipeline: ColorizeDiffusionPipeline, case: Case) -> tuple[list[Scene], ColorizeDiffusionOptions]:
    options = options_from(ColorizeDiffusionOptions, settings_of(case), owner="this")
    return scenes_from_arrays(arrays_of(case), options, needs_of(pipeline.generation, options.mode)), options


def run_pipeline(case: Case) -> Arrays:
    pipeline = pipeline_of(generation_of(case), prediction=case.params["parameterization"])
    scenes, options = scenes_and_options(pipeline, case)
    z = pipeline.sample(scenes, options, Noise(arrays_of(case)["start"], None), no_progress)
    image = pipeline.replay(arrays_of(case), settings_of(case), no_progress)
    return {"z": z, "image": image, "uint8_hwc": uint8_from_normalized(image)}


def run_unet(case: Case) -> Arrays:
    """One evaluation without guidance: of three slots, the conditional one."""
    params, inputs = case.params, case.inputs
    rows = len(inputs["x"])
    conditions = Conditions(
        hints=tuple(torch.from_numpy(np.repeat(inputs[f"control{i}"][:1], rows, axis=0)) for i in range(5)),
        blank_hints=(),
        context=torch.from_numpy(inputs["context"]),
        mask=torch.from_numpy(inputs["mask"]) if params["split"] else None,
        maps=_each(inputs, "hs_bg", rows, params.get("hs_bg_scale", 1.0)) if params.get("hs_bg") else None,
        style=_each(inputs, "style", rows, 1.0) if params.get("style") else None,
        lora_fg=bool(params.get("lora_fg")),
        lora_bg=bool(params.get("lora_bg")),
    )
    how = network.attending(params)
    x, t = torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["t"]).float()
    return {"y": rows_on_bundle(case)(None, x, t, conditions, guidance="none", how=how).numpy()}


def _each(inputs: Arrays, name: str, rows: int, scale: float) -> tuple[Tensor, ...]:
    return tuple(scale * torch.from_numpy(np.repeat(inputs[f"{name}{i}"], rows, axis=0)) for i in range(12))


BUNDLE: Mapping[str, Runner] = {
    "image_encoder": run_image_encoder,
    "sketch_encoder": run_sketch_encoder,
    "vae_encode": run_vae_encode,
    "vae_decode": run_vae_decode,
    "cluster_transformer": run_cluster_transformer,
    "threshold_embedder": run_threshold_embedder,
    "bg_encoder": run_background_encoder,
    "style_encoder": run_style_encoder,
    "prepare_conditions": run_prepare_conditions,
    "unet": run_unet,
    "cfg_denoiser": lambda case: network.run_cfg_denoiser(case, rows_on_bundle(case)),
    "sample": lambda case: network.run_sample(case, rows_on_bundle(case)),
    "pipeline": run_pipeline,
}
"""By the kind of a case."""


def looks_inside(case: Case) -> bool:
    """Whether a case is about what no bundle shows: a call that no mode makes, or a VAE that a bundle leaves out."""
    if case.module == "vae_encode":
        return generation_of(case) != "v2"
    return case.module == "unet" and place_of(case) is None

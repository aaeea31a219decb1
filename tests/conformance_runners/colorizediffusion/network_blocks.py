"""Runs the cases of ColorizeDiffusion's networks, one at a time: blocks, U-Net, encoders and embedders.

The networks are those of the tiny checkpoints, whose fp16 weights are taken to fp32 first, as the cases were made.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saishiki.models import Checkpoint, read_checkpoint
from saishiki.models.colorizediffusion import (
    BackgroundEncoder,
    ClusterTransformer,
    ColorizeDiffusionConfig,
    Conditioning,
    ImageEncoderConfig,
    SketchEncoder,
    Split,
    StyleEncoder,
    ThresholdEmbedder,
    UNet,
    VAEConfig,
    size_embedding,
)
from saishiki.models.colorizediffusion.layers import sinusoid
from saishiki.models.colorizediffusion.transformer import CrossStep
from saishiki.models.colorizediffusion.vae import VAE
from tests.conformance import FOLDER, Case

Arrays = Mapping[str, np.ndarray]
Tensors = Mapping[str, Tensor]

UNET = "model.diffusion_model."
NETWORKS: Mapping[str, Callable[[ColorizeDiffusionConfig], nn.Module]] = {
    UNET: UNet,
    "control_encoder.": SketchEncoder,
    "bg_encoder.": BackgroundEncoder,
    "style_encoder.": StyleEncoder,
    "transformer.": ClusterTransformer,
    "thresh_embedder.": ThresholdEmbedder,
    "first_stage_model.": lambda config: VAE(config.vae),
}
"""By the prefix of their keys."""

REGIONS = {"none": None, "foreground": "fg", "background": "bg"}


@cache
def checkpoint(family: str) -> Checkpoint:
    """The family's tiny checkpoint."""
    return read_checkpoint(FOLDER / family / "tiny.safetensors")


@cache
def tiny_config(family: str) -> ColorizeDiffusionConfig:
    """The config of the tiny checkpoint, from its metadata."""
    stated = {
        key: json.loads(value) for key, value in checkpoint(family).metadata.items() if value[0] in "0123456789[{"
    }
    clip = stated["clip"]
    return ColorizeDiffusionConfig(
        generation=family.removeprefix("colorizediffusion-"),  # type: ignore[arg-type]
        model_channels=stated["model_channels"],
        channel_mult=tuple(stated["channel_mult"]),
        num_res_blocks=stated["num_res_blocks"],
        head_channels=stated["num_head_channels"],
        context_dim=stated["context_dim"],
        tokens=stated["num_tokens"],
        lora_fg=stated.get("lora_fr"),
        lora_bg=stated.get("lora_br"),
        cluster_layers=stated.get("cluster_layers"),
        threshold_width=stated.get("thresh_embed_dim"),
        size_width=stated.get("ratio_embed_dim"),
        warp_widths=warp_widths(family),
        vae=VAEConfig(stated["vae_ch"], tuple(stated["vae_ch_mult"]), stated["vae_num_res_blocks"], 4, 0.18215),
        image_encoder=ImageEncoderConfig(**{("head_width" if k == "heads" else k): v for k, v in clip.items()}),
        timesteps=stated["timesteps"],
    )


def warp_widths(family: str) -> tuple[int, ...] | None:
    """What the warp modules' shapes say, where there are any."""
    shapes = checkpoint(family).shapes
    keys = (f"{UNET}warp_modules.{i}.attn.to_q.weight" for i in range(12))
    widths = tuple(shapes[key][0] for key in keys if key in shapes)
    return widths or None


@cache
def network(family: str, prefix: str) -> nn.Module:
    """One network of the tiny checkpoint, in fp32."""
    tensors = checkpoint(family).tensors
    state = {key.removeprefix(prefix): tensors[key].float() for key in tensors if key.startswith(prefix)}
    built = NETWORKS[prefix](tiny_config(family))
    built.load_state_dict(state)
    return built.eval().requires_grad_(False)


def unet_of(case: Case) -> UNet:
    built = network(case.family, UNET)
    assert isinstance(built, UNet)
    return built


def tensors_of(case: Case) -> dict[str, Tensor]:
    """A case's inputs."""
    return {name: torch.from_numpy(array) for name, array in case.inputs.items()}


def numbered(inputs: Tensors, name: str) -> list[Tensor]:
    """``name0``, ``name1``, ... as far as there are any."""
    return [inputs[f"{name}{i}"] for i in range(len(inputs)) if f"{name}{i}" in inputs]


def named(name: str, results: Any) -> Arrays:
    """Results as ``name0``, ``name1``, ..."""
    return {f"{name}{i}": result.numpy() for i, result in enumerate(results)}


def conditioning_of(params: Mapping[str, Any], inputs: Tensors) -> Conditioning:
    """A U-Net case's parameters and inputs, as the network takes them; maps and vectors serve every row."""
    rows = inputs["x"].shape[0]
    maps = [params["hs_bg_scale"] * tokens.expand(rows, -1, -1) for tokens in numbered(inputs, "hs_bg")]
    style = [vector.expand(rows, -1) for vector in numbered(inputs, "style")]
    region = REGIONS[params["decoder_lora_mode"]] if "decoder_lora_mode" in params else None
    return Conditioning(
        strengths=params["reference_scales"],
        region=region,  # type: ignore[arg-type]
        split=split_of(params, inputs["mask"]) if params["split"] else None,
        maps=maps or None,
        warp_threshold=params.get("threshold"),
        style=style or None,
    )


def split_of(params: Mapping[str, Any], mask: Tensor) -> Split:
    return Split(
        mask=mask,
        threshold=params["mask_threshold"],
        fg_scale=params["fg_scale"],
        bg_scale=params["bg_scale"],
        merge_scale=params["merge_scale"],
        lora_fg=params.get("lora_fg", False),
        lora_bg=params.get("lora_bg", False),
    )


@torch.inference_mode()
def run_unet(case: Case) -> Arrays:
    inputs = tensors_of(case)
    x = inputs["x"]
    hints = [hint[:1].expand(x.shape[0], -1, -1, -1) for hint in numbered(inputs, "control")]
    given = conditioning_of(case.params, inputs)
    return {"y": unet_of(case)(x, inputs["t"], hints, inputs["context"], conditioning=given).numpy()}


@torch.inference_mode()
def run_time_embedding(case: Case) -> Arrays:
    unet, t = unet_of(case), tensors_of(case)["t"]
    embedded = sinusoid(t, unet.config.model_channels)
    return {"sinusoid": embedded.numpy(), "emb": unet.time_embedding(t).numpy()}


@torch.inference_mode()
def run_sketch_encoder(case: Case) -> Arrays:
    sketch = tensors_of(case)["sketch"]
    return named("hint", network(case.family, "control_encoder.")(torch.cat([sketch, torch.full_like(sketch, -1.0)])))


@torch.inference_mode()
def run_background_encoder(case: Case) -> Arrays:
    inputs = tensors_of(case)
    return named("hs", network(case.family, "bg_encoder.")(inputs["z"], inputs["context"], inputs["y"]))


@torch.inference_mode()
def run_style_encoder(case: Case) -> Arrays:
    inputs = tensors_of(case)
    return named("style", network(case.family, "style_encoder.")(inputs["z"], inputs["context"], inputs["y"]))


@torch.inference_mode()
def run_cluster_transformer(case: Case) -> Arrays:
    return {"tokens": network(case.family, "transformer.")(tensors_of(case)["tokens"]).numpy()}


@torch.inference_mode()
def run_threshold_embedder(case: Case) -> Arrays:
    return {"emb": network(case.family, "thresh_embedder.")(tensors_of(case)["threshold"]).numpy()}


def run_size_embedding(case: Case) -> Arrays:
    width = tiny_config(case.family).size_width
    assert width is not None
    return {
        name: size_embedding((oh, ow), (height, width_px), width).numpy()
        for name, (oh, ow, height, width_px) in case.params["sizes"].items()
    }


@torch.inference_mode()
def run_block(case: Case) -> Arrays:
    """A block by its key; what it is shows in the case's inputs and parameters."""
    inputs, params = tensors_of(case), case.params
    if "key_res" in params:
        return run_vae_middle(case)
    if "h_skip" in inputs:
        return {"y": layer_of(case)(inputs["h_skip"], inputs["hs_bg"]).numpy()}
    if "emb" in inputs:
        block = layer_of(case)
        return {"y": block(inputs["x"], block.emb_layers(inputs["emb"])).numpy()}
    if "mask" in inputs:
        return run_split_attention(case)
    if "context" in inputs:
        step = CrossStep(lambda block, h: block.attn2(block.norm2(h), inputs["context"]))
        return {"y": layer_of(case)(inputs["x"], step).numpy()}
    return {name: layer_of(case)(inputs["x"], REGIONS[name]).numpy() for name in case.outputs}


def layer_of(case: Case) -> Any:
    return unet_of(case).get_submodule(case.params["key"].removeprefix(UNET))


def run_split_attention(case: Case) -> Arrays:
    inputs, params, unet, layer = tensors_of(case), case.params, unet_of(case), layer_of(case)
    (place,) = (
        place
        for place, found in zip(unet.config.transformer_places, unet.cross_attentions(), strict=True)
        if found is layer
    )
    assert place.scale == params["scale_factor"]
    y = layer.split(
        inputs["x"],
        inputs["context"],
        split_of(params, inputs["mask"]),
        selection=unet.selection(place),
        scale=place.scale,
        strength=params["reference_scale"],
    )
    return {"y": y.numpy()}


def run_vae_middle(case: Case) -> Arrays:
    x = tensors_of(case)["x"]
    vae = network(case.family, "first_stage_model.")
    middle = vae.get_submodule("decoder.mid_block")
    residual, attention = middle.get_submodule("resnets.0"), middle.get_submodule("attentions.0")
    return {"res": residual(x, None).numpy(), "attn": attention(x).numpy()}


BLOCKS: Mapping[str, Callable[[Case], Arrays]] = {
    "bg_encoder": run_background_encoder,
    "block": run_block,
    "cluster_transformer": run_cluster_transformer,
    "ratio_embedder": run_size_embedding,
    "sketch_encoder": run_sketch_encoder,
    "style_encoder": run_style_encoder,
    "threshold_embedder": run_threshold_embedder,
    "time_embed": run_time_embedding,
    "unet": run_unet,
}
"""By the kind of a case."""

"""Networks with random weights as plans of our own engine, made where they are measured: traced, lowered, and fed.

A dry run takes the smallest networks that the kernels of plans know.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from random_weights.colorizediffusion import tiny_config
from random_weights.values import seeded_values

from battery.network import Scale, random_modules, scale_of
from battery.part import Options, SkippedError
from saishiki.models.animediffusion import AnimeDiffusionConfig
from saishiki.models.animediffusion.modules import signatures
from saishiki.models.colorizediffusion import CONFIGS, ColorizeDiffusionConfig, UNet
from saishiki.models.colorizediffusion.denoiser import Denoiser
from saishiki.models.colorizediffusion.hoists import DenoiserHoists
from saishiki.runtime.backends.plans import LoadedPlan
from saishiki.runtime.pipelines.colorizediffusion import variant_of
from saishiki.runtime.signature import Array, Signature, Sizes

EXPORTER = ("onnxscript", "onnx_ir")
SMALL = Scale(AnimeDiffusionConfig(7, 3, 64, 1, (1,), 2, False, 1000), 8)
COLORIZEDIFFUSION_PX, SMALL_COLORIZEDIFFUSION_PX = 256, 64


@dataclass(frozen=True)
class Subject:
    """A module's plan with its weights, the sizes it is measured at, and inputs of one call."""

    name: str
    loaded: LoadedPlan
    sizes: Sizes
    inputs: Mapping[str, Array]


def animediffusion_scale(options: Options) -> Scale:
    """The published size; in a dry run the smallest that kernels know the norms and heads of."""
    return SMALL if options.dry_run else scale_of(options)


def animediffusion(options: Options) -> Subject:
    """The denoiser that :func:`battery.network.build_network` builds, for pictures of any size."""
    scale = animediffusion_scale(options)
    denoiser, signature = random_modules(scale.config)["denoiser"], signatures(scale.config)["denoiser"]
    traced_at = {"batch": 2, "height": 8 * scale.config.stride, "width": 12 * scale.config.stride}
    sizes = {"batch": 1, "height": scale.size_px, "width": scale.size_px}
    return Subject("animediffusion", plan_of(denoiser, signature, traced_at), sizes, _drawn(signature, sizes))


def colorizediffusion(options: Options) -> Subject:
    """The denoiser of v2's full mode, guided by the reference, at one size: tracing takes a third of the time then.

    In a dry run v1's of vanilla mode without guidance, narrow: tracing v2's takes as long as all other parts together.
    """
    config, size_px, variant = CONFIGS["v2"], COLORIZEDIFFUSION_PX, variant_of("v2", "full", "reference", merge=False)
    if options.dry_run:
        config, size_px = replace(tiny_config("v1"), head_channels=32), SMALL_COLORIZEDIFFUSION_PX
        variant = variant_of("v1", "vanilla", "none", merge=False)
    denoiser = Denoiser(random_unet(config, options), variant, DenoiserHoists())
    sizes = {"batch": 1, "height": size_px, "width": size_px}
    signature = denoiser.signature.at(sizes)
    return Subject("colorizediffusion", plan_of(denoiser, signature, sizes), {}, _drawn(signature, {}))


def random_unet(config: ColorizeDiffusionConfig, options: Options) -> UNet:
    """On the CPU, its weights drawn where that is fast."""
    with torch.device("meta"):
        unet = UNet(config).eval()
    unet = unet.to_empty(device="cpu").requires_grad_(False)
    draw = seeded_values(0, device=options.device)
    for name, parameter in unet.named_parameters():
        parameter.copy_(draw(name, parameter.shape))
    return unet


def plan_of(module: Any, signature: Signature, traced_at: Sizes) -> LoadedPlan:
    """The fp16 plan of a module, as an export makes it."""
    if missing := [name for name in EXPORTER if importlib.util.find_spec(name) is None]:
        raise SkippedError(f"needs {' and '.join(missing)} to make plans; see benchmarks/README.md for how to carry it")
    from saishiki.export.plan import lower_module

    lowered = lower_module(module, signature, traced_at)
    return LoadedPlan(lowered.plan, signature, lowered.read_weights())


def _drawn(signature: Signature, sizes: Sizes) -> dict[str, Array]:
    """Normal random numbers; whether a token is foreground is 0 or 1."""
    rng = np.random.default_rng(0)
    drawn = {spec.name: rng.standard_normal(spec.shape(sizes), dtype=np.float32) for spec in signature.inputs}
    return {
        name: (array > 0).astype(np.float32) if name.startswith("foreground_") else array
        for name, array in drawn.items()
    }

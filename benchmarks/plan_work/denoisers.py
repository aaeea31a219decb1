"""Every denoiser of ColorizeDiffusion at the published size, as a plan, without its weights."""

from collections.abc import Iterator

import torch
from hoist_work.counting import give_weights

from plan_work.counting import Row, count
from saishiki.export.half_graph import half_graph
from saishiki.export.onnx_graph import trace
from saishiki.export.passes import PASSES
from saishiki.export.plan import LoweredPlan, lower_model
from saishiki.models.colorizediffusion import ColorizeDiffusionConfig, UNet
from saishiki.models.colorizediffusion.denoiser import Denoiser
from saishiki.models.colorizediffusion.hoists import DenoiserHoists
from saishiki.runtime.pipelines.colorizediffusion import MODES, DenoiserVariant, variants_of
from saishiki.runtime.signature import Signature, Sizes

GUIDANCE = "both"
"""All rows that there are; another guidance changes how many, and no operation."""


def count_denoisers(config: ColorizeDiffusionConfig, sizes: Sizes) -> Iterator[Row]:
    """A row for each denoiser of the generation, as it is counted."""
    with torch.device("meta"):
        unet = UNet(config).eval()
    give_weights(unet)
    for variant in variants_of(config.generation, MODES[config.generation], (GUIDANCE,), merge=True):
        signature, lowered = plan_of(unet, variant, sizes)
        counted = count(lowered.plan, signature, {}) | {"sizes": dict(sizes)}
        yield {"module": variant.module_name, "precision": "fp16", "side_px": sizes["height"], **counted}


def plan_of(unet: UNet, variant: DenoiserVariant, sizes: Sizes) -> tuple[Signature, LoweredPlan]:
    """The plan at fixed sizes, whose graph takes a third of the time to trace."""
    denoiser = Denoiser(unet, variant, DenoiserHoists())
    signature = denoiser.signature.at(sizes)
    model = half_graph(trace(denoiser, signature, {}), keep_fp32=())
    for rewrite in PASSES:
        rewrite(model, signature)
    return signature, lower_model(model, signature, "fp16")

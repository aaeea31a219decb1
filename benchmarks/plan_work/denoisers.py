"""Every denoiser of ColorizeDiffusion at the published size, as a plan, without its weights."""

from collections.abc import Iterator

import torch
from hoist_work.counting import give_weights

from plan_work.counting import Row, count
from saishiki.export.plan import lower_module
from saishiki.models.colorizediffusion import ColorizeDiffusionConfig, UNet
from saishiki.models.colorizediffusion.denoiser import Denoiser
from saishiki.models.colorizediffusion.hoists import DenoiserHoists
from saishiki.runtime.pipelines.colorizediffusion import MODES, variants_of
from saishiki.runtime.signature import Sizes

GUIDANCE = "both"
"""All rows that there are; the graphs of other guidances have fewer, and no operations of their own."""


def count_denoisers(config: ColorizeDiffusionConfig, sizes: Sizes) -> Iterator[Row]:
    """A row for each denoiser of the generation, as it is counted."""
    with torch.device("meta"):
        unet = UNet(config).eval()
    give_weights(unet)
    for variant in variants_of(config.generation, MODES[config.generation], (GUIDANCE,), merge=True):
        denoiser = Denoiser(unet, variant, DenoiserHoists())
        fixed = denoiser.signature.at(sizes)  # takes a third of the time to trace
        counted = count(lower_module(denoiser, fixed, {}).plan, fixed, {}) | {"sizes": dict(sizes)}
        yield {"module": variant.module_name, "precision": "fp16", "side_px": sizes["height"], **counted}

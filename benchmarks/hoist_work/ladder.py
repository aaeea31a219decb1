"""The published step, and then the same with one hoist after the other."""

from collections.abc import Iterator
from dataclasses import replace

from hoist_work.published import PublishedStep
from saishiki.models.colorizediffusion.denoiser import Denoiser
from saishiki.models.colorizediffusion.hoists import PLAIN
from saishiki.models.colorizediffusion.interface import ExportedModule
from saishiki.models.colorizediffusion.unet import UNet
from saishiki.runtime.pipelines.colorizediffusion import DenoiserVariant, Guidance, Mode, variant_of

RUNGS = {
    "published": "as PyTorch runs the U-Net on every row",
    "graph": "the same, exported: no product twice",
    "regions": "tokens meet their region alone, rows share inputs",
    "time": "time vectors",
    "kv": "keys and values of the context",
    "masks": "regions of every level",
    "style": "scale and shift of the style",
    "warp": "keys and values of the background's maps",
    "guidance": "rows without context take a bias",
    "prefix": "what rows share before the first context",
}
"""What is taken out of the step, by rung; each builds on those before it."""


def ladder(unet: UNet, mode: Mode, guidance: Guidance) -> Iterator[tuple[str, ExportedModule]]:
    """The modules by rung, without the first, which is no graph, and those that change nothing in this mode."""
    variant = variant_of(unet.config.generation, mode, guidance, merge=False)
    yield "graph", PublishedStep(unet, variant, mode)
    yield "regions", Denoiser(unet, variant, PLAIN)
    hoists = PLAIN
    for name in hoists_of(variant, is_styled=unet.config.generation == "v2"):
        hoists = replace(hoists, **{name: True})
        yield name, Denoiser(unet, variant, hoists)


def hoists_of(variant: DenoiserVariant, *, is_styled: bool) -> tuple[str, ...]:
    """The hoists that concern a variant, in the order of :data:`RUNGS`."""
    concerned = {
        "masks": variant.split,
        "style": is_styled,
        "warp": variant.warp,
        "guidance": variant.guidance in ("reference", "both"),
        "prefix": variant.guidance in ("reference", "both"),
    }
    return tuple(name for name in list(RUNGS)[3:] if concerned.get(name, True))

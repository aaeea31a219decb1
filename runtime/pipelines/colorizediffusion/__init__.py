"""ColorizeDiffusion v1, v1.5 and v2 at run time."""

from saishiki.runtime.pipelines.colorizediffusion.options import ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.pipeline import ColorizeDiffusionPipeline
from saishiki.runtime.pipelines.colorizediffusion.variants import (
    GENERATIONS,
    GUIDANCES,
    MODES,
    SLOTS,
    DenoiserVariant,
    Generation,
    Guidance,
    Mode,
    check_mode,
    variant_of,
    variants_of,
)

__all__ = [
    "GENERATIONS",
    "GUIDANCES",
    "MODES",
    "SLOTS",
    "ColorizeDiffusionOptions",
    "ColorizeDiffusionPipeline",
    "DenoiserVariant",
    "Generation",
    "Guidance",
    "Mode",
    "check_mode",
    "variant_of",
    "variants_of",
]

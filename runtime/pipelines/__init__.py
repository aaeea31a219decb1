"""Pipelines: per family, what happens between pictures and the image.

The names are loaded on first use: a service that runs one family does not load the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saishiki.runtime.pipelines.animediffusion import AnimeDiffusionOptions, AnimeDiffusionPipeline, Sampling
    from saishiki.runtime.pipelines.colorizediffusion import ColorizeDiffusionOptions, ColorizeDiffusionPipeline
    from saishiki.runtime.pipelines.families import FAMILIES, load_pipeline, option_types
    from saishiki.runtime.pipelines.protocol import Draws, Pictures, Pipeline, Work

__all__ = [
    "FAMILIES",
    "AnimeDiffusionOptions",
    "AnimeDiffusionPipeline",
    "ColorizeDiffusionOptions",
    "ColorizeDiffusionPipeline",
    "Draws",
    "Pictures",
    "Pipeline",
    "Sampling",
    "Work",
    "load_pipeline",
    "option_types",
]

_MODULES = {
    "AnimeDiffusionOptions": "animediffusion",
    "AnimeDiffusionPipeline": "animediffusion",
    "ColorizeDiffusionOptions": "colorizediffusion",
    "ColorizeDiffusionPipeline": "colorizediffusion",
    "FAMILIES": "families",
    "Sampling": "animediffusion",
    "load_pipeline": "families",
    "option_types": "families",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'protocol')}"), name)

"""Pipelines: per family, what happens between pictures and the image."""

from saishiki.runtime.pipelines.animediffusion import AnimeDiffusionOptions, AnimeDiffusionPipeline, Sampling
from saishiki.runtime.pipelines.colorizediffusion import ColorizeDiffusionOptions, ColorizeDiffusionPipeline
from saishiki.runtime.pipelines.families import LOADERS, OPTIONS, load_pipeline
from saishiki.runtime.pipelines.protocol import Draws, Pictures, Pipeline, Work

__all__ = [
    "LOADERS",
    "OPTIONS",
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
]

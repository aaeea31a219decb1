"""Pipelines: per family, what happens between prepared arrays and the image."""

from saishiki.runtime.pipelines.animediffusion import AnimeDiffusionPipeline
from saishiki.runtime.pipelines.families import LOADERS, load_pipeline
from saishiki.runtime.pipelines.protocol import Pipeline, Sampling

__all__ = ["LOADERS", "AnimeDiffusionPipeline", "Pipeline", "Sampling", "load_pipeline"]

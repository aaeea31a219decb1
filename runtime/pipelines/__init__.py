"""Pipelines: per family, what happens between prepared arrays and the image."""

from collections.abc import Callable, Mapping

from saishiki.runtime.backends.protocol import Backend
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Precision
from saishiki.runtime.pipelines.animediffusion import AnimeDiffusionPipeline
from saishiki.runtime.pipelines.protocol import Pipeline, Sampling

LOADERS: Mapping[str, Callable[[Bundle, Backend, Precision], Pipeline]] = {
    "animediffusion": AnimeDiffusionPipeline.load,
}

__all__ = ["LOADERS", "AnimeDiffusionPipeline", "Pipeline", "Sampling"]

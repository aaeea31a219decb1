"""Which pipeline runs the bundles of which family."""

from collections.abc import Callable, Mapping
from typing import Any

from saishiki.runtime.backends.protocol import Backend
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BundleError
from saishiki.runtime.manifest import Precision
from saishiki.runtime.pipelines.animediffusion import FAMILY as ANIMEDIFFUSION
from saishiki.runtime.pipelines.animediffusion import AnimeDiffusionOptions, AnimeDiffusionPipeline
from saishiki.runtime.pipelines.colorizediffusion.modules import FAMILIES as COLORIZEDIFFUSION
from saishiki.runtime.pipelines.colorizediffusion.options import ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.pipeline import ColorizeDiffusionPipeline
from saishiki.runtime.pipelines.protocol import Pipeline

LOADERS: Mapping[str, Callable[[Bundle, Backend, Precision], Pipeline]] = {
    ANIMEDIFFUSION: AnimeDiffusionPipeline.load,
    **dict.fromkeys(COLORIZEDIFFUSION, ColorizeDiffusionPipeline.load),
}

OPTIONS: Mapping[str, type[Any]] = {
    ANIMEDIFFUSION: AnimeDiffusionOptions,
    **dict.fromkeys(COLORIZEDIFFUSION, ColorizeDiffusionOptions),
}
"""The options of every family."""


def load_pipeline(bundle: Bundle, backend: Backend, precision: Precision) -> Pipeline:
    """The bundle's modules on a backend; raises ``BundleError`` for a family that this version does not know."""
    family = bundle.manifest.family
    if family not in LOADERS:
        raise BundleError(
            f"{bundle.path}: unknown family {family!r}, expected one of {', '.join(LOADERS)}; "
            "upgrade Saishiki with: pip install -U saishiki"
        )
    return LOADERS[family](bundle, backend, precision)

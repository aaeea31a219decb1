"""Which pipeline runs the bundles of which family."""

from collections.abc import Callable, Mapping

from saishiki.runtime.backends.protocol import Backend
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BundleError
from saishiki.runtime.manifest import Precision
from saishiki.runtime.pipelines.animediffusion import FAMILY as ANIMEDIFFUSION
from saishiki.runtime.pipelines.animediffusion import AnimeDiffusionPipeline
from saishiki.runtime.pipelines.protocol import Pipeline

LOADERS: Mapping[str, Callable[[Bundle, Backend, Precision], Pipeline]] = {
    ANIMEDIFFUSION: AnimeDiffusionPipeline.load,
}


def load_pipeline(bundle: Bundle, backend: Backend, precision: Precision) -> Pipeline:
    """The bundle's modules on a backend; raises ``BundleError`` for a family that this version does not know."""
    family = bundle.manifest.family
    if family not in LOADERS:
        raise BundleError(
            f"{bundle.path}: unknown family {family!r}, expected one of {', '.join(LOADERS)}; "
            "upgrade Saishiki with: pip install -U saishiki"
        )
    return LOADERS[family](bundle, backend, precision)

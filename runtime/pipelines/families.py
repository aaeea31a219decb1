"""Which pipeline runs the bundles of which family. A family's modules are loaded with the first bundle of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from saishiki.runtime.backends.protocol import Backend
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BundleError
from saishiki.runtime.manifest import Precision
from saishiki.runtime.pipelines.protocol import Pipeline


@dataclass(frozen=True)
class _Implementation:
    load: Callable[[Bundle, Backend, Precision], Pipeline]
    options: type[Any]


def load_pipeline(bundle: Bundle, backend: Backend, precision: Precision) -> Pipeline:
    """The bundle's modules on a backend; raises ``BundleError`` for a family that this version does not know."""
    family = bundle.manifest.family
    if family not in _IMPLEMENTATIONS:
        raise BundleError(
            f"{bundle.path}: unknown family {family!r}, expected one of {', '.join(FAMILIES)}; "
            "upgrade Saishiki with: pip install -U saishiki"
        )
    return _IMPLEMENTATIONS[family]().load(bundle, backend, precision)


def option_types() -> dict[str, type[Any]]:
    """The options of every family, by its name; families that share a pipeline share them."""
    return {family: implementation().options for family, implementation in _IMPLEMENTATIONS.items()}


def _animediffusion() -> _Implementation:
    from saishiki.runtime.pipelines.animediffusion import AnimeDiffusionOptions, AnimeDiffusionPipeline

    return _Implementation(AnimeDiffusionPipeline.load, AnimeDiffusionOptions)


def _colorizediffusion() -> _Implementation:
    from saishiki.runtime.pipelines.colorizediffusion import ColorizeDiffusionOptions, ColorizeDiffusionPipeline

    return _Implementation(ColorizeDiffusionPipeline.load, ColorizeDiffusionOptions)


_IMPLEMENTATIONS: Mapping[str, Callable[[], _Implementation]] = {
    "animediffusion": _animediffusion,
    "colorizediffusion-v1": _colorizediffusion,
    "colorizediffusion-v1.5": _colorizediffusion,
    "colorizediffusion-v2": _colorizediffusion,
}

FAMILIES = tuple(_IMPLEMENTATIONS)
"""The names of all families, as manifests have them."""

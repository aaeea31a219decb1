"""A bundle's modules, each loaded when it is first needed: a vanilla run never loads the background encoder."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from saishiki.runtime.backends.protocol import Backend, Module
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BundleError
from saishiki.runtime.manifest import Precision
from saishiki.runtime.pipelines.colorizediffusion.variants import GENERATIONS, DenoiserVariant, Generation, Mode
from saishiki.runtime.signature import Array

FAMILY_PREFIX = "colorizediffusion-"
FAMILIES: Mapping[str, Generation] = {FAMILY_PREFIX + generation: generation for generation in GENERATIONS}
"""The families' names in a manifest, and their generations."""


@dataclass(frozen=True)
class LazyModules:
    """The modules of one bundle on one backend, in the wanted precision where there is a graph in it. Thread-safe."""

    bundle: Bundle
    backend: Backend
    precision: Precision
    _loaded: dict[str, Module] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def generation(self) -> Generation:
        """Which of the three networks it is."""
        return FAMILIES[self.bundle.manifest.family]

    def __contains__(self, name: str) -> bool:
        return name in self.bundle.manifest.modules

    def __getitem__(self, name: str) -> Module:
        """The module; raises ``BundleError`` where the bundle has none of that name."""
        with self._lock:
            if name not in self._loaded:
                entry = self.bundle.module(name)
                self._loaded[name] = self.backend.load(self.bundle, name, entry.closest(self.precision))
            return self._loaded[name]

    def call(self, name: str, **inputs: Array) -> dict[str, Array]:
        """The outputs of one call of a module."""
        return self[name](**inputs)

    @property
    def token_shape(self) -> tuple[int, int]:
        """T and W: how many tokens a picture becomes, and how wide they are."""
        if "image_encoder" not in self:
            config = self.bundle.manifest.config
            return int(config["tokens"]), int(config["context_dim"])
        (tokens,) = self.bundle.module("image_encoder").signature.outputs
        _, count, width = tokens.shape({"batch": 1})
        return count - 1, width

    @property
    def image_encoder_side(self) -> int:
        """Height and width of the pictures that the image encoder takes."""
        (pixels,) = self.bundle.module("image_encoder").signature.inputs
        return pixels.shape({"batch": 1})[-1]

    def check_reference(self) -> None:
        """Raises ``BundleError`` where pictures cannot be encoded."""
        if "image_encoder" not in self:
            raise BundleError(
                f"{self.bundle.path}: was exported without an image encoder, so it colours without a reference alone; "
                "give None as the reference, or export it again with --image-encoder FILE"
            )

    def check_mode(self, mode: Mode, variant: DenoiserVariant) -> None:
        """Raises ``BundleError``, naming the flags to export again with, where a mode's modules are missing."""
        missing = [name for name in modules_of(self.generation, mode, variant) if name not in self]
        if missing:
            flags = f"--modes {mode} --guidance {variant.guidance}" + (" --merge" if variant.merge else "")
            raise BundleError(
                f"{self.bundle.path}: mode {mode} with guidance {variant.guidance}"
                f"{' and merge_scale above 0' if variant.merge else ''} needs {', '.join(missing)}, which this bundle "
                f"lacks (its denoisers: {', '.join(self._denoisers())}); export it again with {flags}"
            )

    def _denoisers(self) -> list[str]:
        return [name for name in self.bundle.manifest.modules if name.startswith("denoiser_")]


def modules_of(generation: Generation, mode: Mode, variant: DenoiserVariant) -> tuple[str, ...]:
    """The modules that a mode cannot do without, whichever hoists its bundle was exported with."""
    names = ["sketch_encoder", "vae_decoder", variant.module_name]
    if mode != "vanilla":
        names.append("image_encoder")
    if generation == "v1.5" and mode in ("background", "foreground+background"):
        names += ["threshold_embedder", "cluster_transformer"]
    if mode in ("style", "full"):
        names += ["vae_encoder", "style_encoder"]
    if variant.warp:
        names += ["vae_encoder", "background_encoder"]
    return tuple(dict.fromkeys(names))

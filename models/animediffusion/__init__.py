"""AnimeDiffusion: network, loading, the modules that are exported, and the reference they are compared with."""

from saishiki.models.animediffusion.family import ANIMEDIFFUSION
from saishiki.models.animediffusion.loading import config_from_checkpoint, load, matches
from saishiki.models.animediffusion.modules import Denoiser, TimeProjection, modules, signatures
from saishiki.models.animediffusion.network import CONFIGS, AnimeDiffusion, AnimeDiffusionConfig, UNet

__all__ = [
    "ANIMEDIFFUSION",
    "CONFIGS",
    "AnimeDiffusion",
    "AnimeDiffusionConfig",
    "Denoiser",
    "TimeProjection",
    "UNet",
    "config_from_checkpoint",
    "load",
    "matches",
    "modules",
    "signatures",
]

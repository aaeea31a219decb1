"""ColorizeDiffusion v1, v1.5 and v2: networks, loading, and the reference they are compared with."""

from saishiki.models.colorizediffusion.background_encoder import BackgroundEncoder
from saishiki.models.colorizediffusion.cluster_transformer import ClusterTransformer
from saishiki.models.colorizediffusion.conditions import Conditions, prepare_conditions
from saishiki.models.colorizediffusion.config import (
    CONFIGS,
    ColorizeDiffusionConfig,
    ImageEncoderConfig,
    VAEConfig,
)
from saishiki.models.colorizediffusion.cross_attention import Split
from saishiki.models.colorizediffusion.given import ENHANCED, Pictures, Preparation
from saishiki.models.colorizediffusion.image_encoder import ImageEncoder
from saishiki.models.colorizediffusion.latent_encoder import size_embedding
from saishiki.models.colorizediffusion.loading import LoadedNetwork, config_from_checkpoint, load
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from saishiki.models.colorizediffusion.prediction import find_prediction
from saishiki.models.colorizediffusion.recognition import matches
from saishiki.models.colorizediffusion.sketch_encoder import SketchEncoder
from saishiki.models.colorizediffusion.style_encoder import StyleEncoder
from saishiki.models.colorizediffusion.threshold_embedder import ThresholdEmbedder
from saishiki.models.colorizediffusion.unet import Conditioning, UNet
from saishiki.models.colorizediffusion.vae import VAE, VAEDecoder, VAEEncoder

__all__ = [
    "CONFIGS",
    "ENHANCED",
    "VAE",
    "BackgroundEncoder",
    "ClusterTransformer",
    "ColorizeDiffusion",
    "ColorizeDiffusionConfig",
    "Conditioning",
    "Conditions",
    "ImageEncoder",
    "ImageEncoderConfig",
    "LoadedNetwork",
    "Pictures",
    "Preparation",
    "SketchEncoder",
    "Split",
    "StyleEncoder",
    "ThresholdEmbedder",
    "UNet",
    "VAEConfig",
    "VAEDecoder",
    "VAEEncoder",
    "config_from_checkpoint",
    "find_prediction",
    "load",
    "matches",
    "prepare_conditions",
    "size_embedding",
]

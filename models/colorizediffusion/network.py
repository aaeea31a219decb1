"""The whole of a ColorizeDiffusion checkpoint as one module, under the published key names.

Source: ``config.py`` names it.
"""

import torch
from torch import nn

from saishiki.models.colorizediffusion.background_encoder import BackgroundEncoder
from saishiki.models.colorizediffusion.cluster_transformer import ClusterTransformer
from saishiki.models.colorizediffusion.config import ColorizeDiffusionConfig
from saishiki.models.colorizediffusion.image_encoder import ImageEncoder
from saishiki.models.colorizediffusion.sketch_encoder import SketchEncoder
from saishiki.models.colorizediffusion.style_encoder import StyleEncoder
from saishiki.models.colorizediffusion.threshold_embedder import ThresholdEmbedder
from saishiki.models.colorizediffusion.unet import UNet
from saishiki.models.colorizediffusion.vae import VAE

SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
"""(timesteps,) fp32 each, at the top level of a checkpoint."""


class ColorizeDiffusion(nn.Module):
    """Every network of one generation; what a generation does not have is None, and has no keys.

    Args:
        image_encoder: False leaves the image encoder out, as published checkpoints do.
    """

    def __init__(self, config: ColorizeDiffusionConfig, *, image_encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict({"diffusion_model": UNet(config)})
        self.control_encoder = SketchEncoder(config)
        self.first_stage_model = VAE(config.vae)
        self.cond_stage_model = ImageEncoder(config.image_encoder) if image_encoder else None
        is_clustered, is_styled = config.generation == "v1.5", config.generation == "v2"
        self.transformer = ClusterTransformer(config) if is_clustered else None
        self.thresh_embedder = ThresholdEmbedder(config) if is_clustered else None
        self.bg_encoder = BackgroundEncoder(config) if is_styled else None
        self.style_encoder = StyleEncoder(config) if is_styled else None
        for name in SCHEDULE_BUFFERS:
            self.register_buffer(name, torch.zeros(config.timesteps))

    @property
    def unet(self) -> UNet:
        """The denoising U-Net."""
        unet = self.model["diffusion_model"]
        assert isinstance(unet, UNet)
        return unet

"""What is done to pictures and masks before the networks see them, in torch: the reference that the runtime must match.

Pictures are (1, 3, h, w) fp32 in [-1, 1] at their own size, masks (1, 1, h, w) with 1 on the foreground. "Plain
bicubic" is torch's: a = -0.75, half-pixel centres, borders clamped, no antialias. Source: ``config.py`` names it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from saishiki.models.colorizediffusion.latent_encoder import Size

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in [0, 1]: what CLIP normalises its pictures by."""

WHITE = 1.0
LATENT_SCALE = 0.125
DILATION_PX = 11


def clip_pixels(image: Tensor, side: int) -> Tensor:
    """(1, 3, side, side): squashed to a square whatever its aspect, then normalised; overshoot stays.

    The resampling is bicubic with antialias and align-corners both, which is how upstream calls it.
    """
    square = F.interpolate(image, size=(side, side), mode="bicubic", antialias=True, align_corners=True)
    mean, std = (torch.tensor(values, dtype=image.dtype)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return ((square + 1) / 2 - mean) / std


def squash(image: Tensor, size: Size) -> Tensor:
    """(1, 3, height, width) by plain bicubic whatever the aspect, for the autoencoder; overshoot stays."""
    return F.interpolate(image, size=size, mode="bicubic")


def keep_background(image: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """The picture where the mask is below the threshold, white elsewhere."""
    return torch.where(mask < threshold, image, WHITE)


def dilate(mask: Tensor) -> Tensor:
    """A reference's mask, grown by half the window of a maximum filter and clamped to [0, 1]."""
    return F.max_pool2d(mask, DILATION_PX, stride=1, padding=DILATION_PX // 2).clamp(0, 1)


def latent_mask(mask: Tensor) -> Tensor:
    """A sketch's mask at the latent's size, an eighth, by plain bicubic; it may leave [0, 1]."""
    return F.interpolate(mask, scale_factor=LATENT_SCALE, mode="bicubic", recompute_scale_factor=False)

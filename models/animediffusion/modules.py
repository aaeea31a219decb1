"""The modules an AnimeDiffusion engine is made of.

What the published U-Net does per step is split into the part that depends on the timestep alone
(:class:`TimeProjection`, run once per schedule) and the rest (:class:`Denoiser`); the two together compute exactly
``denoise_fn(x, t)``.
"""

import torch
from torch import Tensor, nn

from saishiki.models.animediffusion.network import AnimeDiffusion, AnimeDiffusionConfig, UNet
from saishiki.runtime.signature import Signature, TensorSpec


class TimeProjection(nn.Module):
    """t: (S,) fp32 timesteps -> time: (S, P) fp32. Runs once per schedule."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, t: Tensor) -> Tensor:
        return self.unet.time_projections(t)


class Denoiser(nn.Module):
    """noisy: (B, 3, H, W), condition: (B, 4, H, W) sketch | reference, time: (B, P) -> eps: (B, 3, H, W).

    Runs every step.
    """

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        return self.unet.denoise(torch.cat([noisy, condition], dim=1), time)


def modules(network: AnimeDiffusion) -> dict[str, nn.Module]:
    """The modules an engine is made of, by name; their inputs and outputs are those of :func:`signatures`."""
    return {"time_projection": TimeProjection(network.denoise_fn), "denoiser": Denoiser(network.denoise_fn)}


def signatures(config: AnimeDiffusionConfig) -> dict[str, Signature]:
    """What goes into and comes out of each module."""
    with torch.device("meta"):
        width = str(sum(block.channels_out for block in UNet(config).residual_blocks()))
    image = ("height", "width")
    conditions = str(config.channel_in - config.channel_out)
    return {
        "time_projection": Signature(
            inputs=(TensorSpec("t", "float32", ("steps",)),),
            outputs=(TensorSpec("time", "float32", ("steps", width)),),
            multiples={},
        ),
        "denoiser": Signature(
            inputs=(
                TensorSpec("noisy", "float32", ("batch", str(config.channel_out), *image)),
                TensorSpec("condition", "float32", ("batch", conditions, *image)),
                TensorSpec("time", "float32", ("batch", width)),
            ),
            outputs=(TensorSpec("eps", "float32", ("batch", str(config.channel_out), *image)),),
            multiples={"height": config.stride, "width": config.stride},
        ),
    }

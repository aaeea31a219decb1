"""The AnimeDiffusion network: a pixel-space U-Net that colours line art after a reference.

"AnimeDiffusion: Anime Diffusion Colorization", Cao et al., TVCG 2024, arXiv 2303.11137. Facts (key names, order of
operations) from xq-meng/AnimeDiffusion, commit 1582eb0, whose LICENSE is the MIT text; no code of it is used.

Modules are named so that ``AnimeDiffusion(config).state_dict()`` has the published keys.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saishiki.runtime.schedule import BUFFERS, schedule_buffers

GROUPS = 32
MAX_PERIOD = 1000.0  # not the usual 10000
PUBLISHED_ATTENTION_HEAD = 4


@dataclass(frozen=True)
class AnimeDiffusionConfig:
    """Everything that shapes the network; the names are upstream's."""

    channel_in: int
    channel_out: int
    channel_base: int
    n_res_blocks: int
    channel_mult: tuple[int, ...]
    attention_head: int
    cbam: bool
    timesteps: int

    @property
    def stride(self) -> int:
        """Height and width must be multiples of this."""
        return int(2 ** (len(self.channel_mult) - 1))


CONFIGS = {
    "published": AnimeDiffusionConfig(7, 3, 64, 2, (1, 2, 4, 8), PUBLISHED_ATTENTION_HEAD, False, 1000),
}


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the published 32 groups."""
    return nn.GroupNorm(GROUPS, channels, eps=1e-5)


class ChannelGate(nn.Module):
    """CBAM's channel gate: one MLP over the global max and the global mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 16
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc(x.amax(dim=(2, 3))) + self.fc(x.mean(dim=(2, 3)))
        return x * torch.sigmoid(gate)[:, :, None, None]


class SpatialGate(nn.Module):
    """CBAM's spatial gate: a 7x7 convolution over the channel-wise max and mean, in that order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(pooled))


class CBAM(nn.Module):
    """Channel gate, then spatial gate (Woo et al., ECCV 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel_attention = ChannelGate(channels)
        self.spatial_attention = SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = self.spatial_attention(self.channel_attention(x))
        return gated


class ResidualBlock(nn.Module):
    """Two convolutions; the timestep's projection is added between them, before the second norm."""

    def __init__(self, channels_in: int, channels_out: int, time_width: int, *, cbam: bool) -> None:
        super().__init__()
        self.channels_out = channels_out
        self.conv1 = nn.Sequential(
            group_norm(channels_in), nn.SiLU(), nn.Conv2d(channels_in, channels_out, 3, padding=1)
        )
        self.time_emb = nn.Sequential(nn.SiLU(), nn.Linear(time_width, channels_out))
        self.attention = nn.Sequential(CBAM(channels_out)) if cbam else nn.Identity()
        self.conv2 = nn.Sequential(
            group_norm(channels_out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(channels_out, channels_out, 3, padding=1)
        )
        self.skip_connection = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """x: (B, channels_in, H, W); time: (B, channels_out), or None to leave the time out."""
        h = self.conv1(x)
        if time is not None:
            h = h + time[:, :, None, None]
        output: Tensor = self.skip_connection(x) + self.conv2(self.attention(h))
        return output


class UpsamplingBlock(nn.Sequential):
    """A residual block, then nearest-neighbour upsampling by two."""

    def __init__(self, residual: ResidualBlock) -> None:
        super().__init__(residual, nn.Upsample(scale_factor=2, mode="nearest"))

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:  # type: ignore[override]
        residual, upsample = self
        output: Tensor = upsample(residual(x, time))
        return output


class SelfAttention(nn.Module):
    """Multi-head attention over all pixels, without an output projection; heads are consecutive channels."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.Sequential(group_norm(channels), nn.Conv1d(channels, 3 * channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.attention(x.flatten(2)).unflatten(1, (3, self.heads, channels // self.heads)).transpose(-1, -2)
        q, k, v = qkv.unbind(1)  # each (B, heads, T, D)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + h.transpose(-1, -2).reshape(batch, channels, height, width)


class UNet(nn.Module):
    """The published ``denoise_fn``: (B, 7, H, W) in, noisy image | sketch | reference; (B, 3, H, W) out, the noise."""

    def __init__(self, config: AnimeDiffusionConfig) -> None:
        super().__init__()
        base, time_width = config.channel_base, 4 * config.channel_base
        widths = [base * m for m in config.channel_mult]
        self.channel_base = base
        self.time_embedding = nn.Sequential(nn.Linear(base, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.input = nn.Sequential(nn.Conv2d(config.channel_in, base, 1))

        encoder: list[nn.Module] = []
        skips, channels = [base], base
        for level, width in enumerate(widths):
            for _ in range(config.n_res_blocks):
                encoder.append(ResidualBlock(channels, width, time_width, cbam=False))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                encoder.append(nn.AvgPool2d(2))
                skips.append(channels)
        self.encoder_block = nn.ModuleList(encoder)

        self.bottom_block = nn.ModuleList(
            [
                ResidualBlock(channels, channels, time_width, cbam=False),
                SelfAttention(channels, config.attention_head),
                ResidualBlock(channels, channels, time_width, cbam=False),
            ]
        )

        decoder: list[nn.Module] = []
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.n_res_blocks):
                decoder.append(ResidualBlock(channels + skips.pop(), width, time_width, cbam=config.cbam))
                channels = width
            if level > 0:
                decoder.append(UpsamplingBlock(ResidualBlock(channels + skips.pop(), width, time_width, cbam=False)))
        self.decoder_block = nn.ModuleList(decoder)
        self.output = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, config.channel_out, 1))

    def residual_blocks(self) -> list[ResidualBlock]:
        """All residual blocks in the order they run, which is also the order of the time projections."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """x: (B, 7, H, W); t: (B,) integer timesteps, or None to leave the time out, as upstream's walk does."""
        return self.denoise(x, None if t is None else self.time_projections(t))

    def time_projections(self, t: Tensor) -> Tensor:
        """t: (B,) timesteps -> (B, P): every residual block's projection of the time embedding, side by side."""
        dtype = next(self.time_embedding.parameters()).dtype
        embedding = self.time_embedding(sinusoid(t, self.channel_base).to(dtype))
        return torch.cat([block.time_emb(embedding) for block in self.residual_blocks()], dim=1)

    def denoise(self, x: Tensor, time: Tensor | None) -> Tensor:
        """The noise in x: (B, 7, H, W), given its time projections (B, P); all-zero projections equal None."""
        blocks = self.residual_blocks()
        projections: list[Tensor | None] = [None] * len(blocks)
        if time is not None:
            projections = list(torch.split(time, [block.channels_out for block in blocks], dim=1))
        projected = iter(projections)

        h = self.input(x)
        skips = [h]
        for block in self.encoder_block:
            h = block(h, next(projected)) if isinstance(block, ResidualBlock) else block(h)
            skips.append(h)
        first, attention, second = self.bottom_block
        h = second(attention(first(h, next(projected))), next(projected))
        for block in self.decoder_block:
            h = block(torch.cat([h, skips.pop()], dim=1), next(projected))
        # The stem's output stays on the stack: pushed upstream, never used.
        noise: Tensor = self.output(h)
        return noise


def sinusoid(t: Tensor, width: int) -> Tensor:
    """t: (B,) -> (B, width): cosines, then sines, of ``t * 1000^(-i / half)``, in fp32 whatever the weights."""
    half = width // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.to(torch.float32)[:, None] * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, width % 2))


class AnimeDiffusion(nn.Module):
    """The published checkpoint as a module: the U-Net and the seven schedule buffers."""

    def __init__(self, config: AnimeDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        for name in BUFFERS:
            self.register_buffer(name, torch.zeros(config.timesteps))
        self.denoise_fn = UNet(config)

    def set_schedule(self, betas: Tensor) -> None:
        """Fills the buffers from betas: (T,)."""
        for name, values in schedule_buffers(betas.numpy().astype(np.float32)).items():
            getattr(self, name).copy_(torch.from_numpy(values))

"""The denoising U-Net of ColorizeDiffusion: the published computation, and the pieces of it that depend on less.

Source: ``config.py`` names it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saishiki.kernels.masked_split_cross_attention.semantics import SEMANTICS, Selection
from saishiki.models.colorizediffusion.blocks import (
    NO_LORA,
    Layers,
    Ranks,
    input_blocks,
    residual_blocks,
    spatial_transformer,
)
from saishiki.models.colorizediffusion.config import HINTED_BLOCKS, ColorizeDiffusionConfig, Place, Region
from saishiki.models.colorizediffusion.cross_attention import CrossAttention, Scale, Split
from saishiki.models.colorizediffusion.layers import ResidualBlock, Upsample, embed, embedding_layers, group_norm
from saishiki.models.colorizediffusion.style_encoder import StyleModule, modulate
from saishiki.models.colorizediffusion.transformer import Attend, CrossStep, TransformerBlock, as_given
from saishiki.models.colorizediffusion.warp import WarpModule, select_skip


@dataclass(frozen=True)
class Conditioning:
    """What a call may have beside hints and context.

    Args:
        strengths: of each transformer block's cross-attention, in order; 1 where there are none.
        region: a LoRA that layers use in a call without a mask. Upstream leaves the foreground's on in the decoder
            after a call with one; None is a fresh start.
        split: turns the call into a mask-guided one.
        maps: the background encoder's, with ``split`` and ``warp_threshold``; deepest first, (B, tokens, C) each.
        style: the style encoder's vectors, deepest first, (B, 2 C) each.
    """

    strengths: Sequence[Scale] | Tensor | None = None
    region: Region | None = None
    split: Split | None = None
    maps: Sequence[Tensor] | None = None
    warp_threshold: Scale | None = None
    style: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class Branches:
    """What :meth:`UNet.walk` takes besides the latent: all that conditions it, ready for each place.

    Args:
        times: one vector (B, C) per residual block; steps: one per transformer; hints: one per ``HINTED_BLOCKS``.
        widen_stem: applied to the first block's output, where rows part only there.
        skip, modulate: a skip before decoder block i takes it, and what that block gives.
    """

    times: Sequence[Tensor]
    steps: Sequence[CrossStep]
    hints: Sequence[Tensor]
    widen_stem: Callable[[Tensor], Tensor] = as_given
    skip: Callable[[int, Tensor], Tensor] = field(default=lambda index, skip: skip)
    modulate: Callable[[int, Tensor], Tensor] = field(default=lambda index, h: h)


class UNet(nn.Module):
    """Predicts noise or velocity of a latent: (B, 4, h, w) -> the same shape, h and w multiples of 8."""

    def __init__(self, config: ColorizeDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        m = config.model_channels
        ranks: Ranks = {"fg": config.lora_fg, "bg": config.lora_bg}
        encoder_ranks = NO_LORA if config.generation == "v2" else ranks
        self.time_embed = embedding_layers(m, config.time_width)
        self.input_blocks = input_blocks(config, encoder_ranks)
        self.middle_block = _middle_block(config, encoder_ranks)
        self.output_blocks = _output_blocks(config, ranks)
        self.out = nn.Sequential(group_norm(m), nn.SiLU(), nn.Conv2d(m, config.latent_channels, 3, padding=1))
        if config.warp_widths is not None:
            widths = zip(reversed(config.encoder_widths), config.warp_widths, strict=True)
            self.warp_modules = nn.ModuleList(WarpModule(width, inner) for width, inner in widths)
        if config.generation == "v2":
            self.style_modules = nn.ModuleList(StyleModule(width, config.time_width) for width in config.style_widths)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        hints: Sequence[Tensor],
        context: Tensor,
        *,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """The published forward pass.

        Args:
            x: (B, 4, h, w); t: (B,) timesteps, which may be fractional.
            hints: of the sketch encoder, times the sketch's strength; (B, C, ..) each.
            context: (B, tokens, context_dim); in a mask-guided call the foreground's and then the background's.
        """
        given = Conditioning() if conditioning is None else conditioning
        embedding = self.time_embedding(t)
        branches = Branches(
            times=[block.emb_layers(embedding) for block in residual_blocks(self)],
            steps=self._published_steps(context, given),
            hints=hints,
            skip=lambda index, skip: self._published_skip(index, skip, given),
            modulate=lambda index, h: self._published_modulation(index, h, embedding, given),
        )
        return self.walk(x, branches)

    def walk(self, x: Tensor, branches: Branches) -> Tensor:
        """The network from latent to prediction, with everything that conditions it at hand."""
        times, steps = iter(branches.times), iter(branches.steps)
        hints = dict(zip(HINTED_BLOCKS, branches.hints, strict=True))
        stem, *encoder = self.input_blocks
        h = branches.widen_stem(stem(x, times, steps)) + hints[0]
        skips = [h]
        for index, layers in enumerate(encoder, start=1):
            h = layers(h, times, steps)
            h = h + hints[index] if index in hints else h
            skips.append(h)
        h = self.middle_block(h, times, steps)
        for index, layers in enumerate(self.output_blocks):
            h = torch.cat([h, branches.skip(index, skips.pop())], dim=1)
            h = branches.modulate(index, layers(h, times, steps))
        prediction: Tensor = self.out(h)
        return prediction

    def time_embedding(self, t: Tensor) -> Tensor:
        """t: (S,) timesteps -> (S, 4 m)."""
        return embed(self.time_embed, t, self.config.model_channels)

    def time_projections(self, t: Tensor) -> Tensor:
        """t: (S,) timesteps -> (S, P): every residual block's projection of the time embedding, side by side."""
        embedding = self.time_embedding(t)
        return torch.cat([block.emb_layers(embedding) for block in residual_blocks(self)], dim=1)

    def split_times(self, time: Tensor) -> tuple[Tensor, ...]:
        """(B, P) as :meth:`time_projections` gives it -> one (B, C) per residual block."""
        return torch.split(time, [block.channels_out for block in residual_blocks(self)], dim=1)

    def cross_attentions(self) -> list[CrossAttention]:
        """The sixteen cross-attention layers, in the order they run."""
        blocks = [module for module in self.modules() if isinstance(module, TransformerBlock)]
        return [block.attn2 for block in blocks]

    def context_projections(
        self, context: Tensor, region: Region | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """context: (B, tokens, context_dim) -> sixteen keys and sixteen values, (B, tokens, C) each.

        ``region`` names the LoRA that is merged into the weights, in layers that have it.
        """
        layers = self.cross_attentions()
        keys = tuple(F.linear(context, layer.to_k.merged(region)) for layer in layers)
        return keys, tuple(F.linear(context, layer.to_v.merged(region)) for layer in layers)

    def style_modulations(self, style: Tensor, embedding: Tensor) -> Tensor:
        """(S, B, sum of 2 C): scale and shift of every decoder block, side by side, at every step.

        Args:
            style: (B, sum of 2 C), the style encoder's vectors side by side; embedding: (S, 4 m).
        """
        vectors = torch.split(style[None], list(self.config.style_widths), dim=2)
        modules = zip(self.style_modules, vectors, strict=True)
        return torch.cat([module(vector, embedding[:, None]) for module, vector in modules], dim=2)

    def warp_projections(self, maps: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The background encoder's maps -> twelve keys and twelve values, (B, tokens, inner) each, deepest first."""
        projected = [module.project(tokens) for module, tokens in zip(self._warp_modules(), maps, strict=True)]
        keys, values = zip(*projected, strict=True)
        return keys, values

    def warp(self, index: int, skip: Tensor, k: Tensor, v: Tensor, *, copies: int) -> Tensor:
        """:meth:`WarpModule.warp` of the skip that decoder block ``index`` takes."""
        return self._warp_modules()[index].warp(skip, k, v, copies=copies)

    def _warp_modules(self) -> list[WarpModule]:
        return [module for module in self.warp_modules if isinstance(module, WarpModule)]

    def _published_steps(self, context: Tensor, given: Conditioning) -> list[CrossStep]:
        places = self.config.transformer_places
        strengths = (1.0,) * len(places) if given.strengths is None else given.strengths
        return [
            CrossStep(_attend_all(context, given.region, strength))
            if given.split is None
            else CrossStep(_attend_split(context, given.split, place, self.selection(place), strength))
            for place, strength in zip(places, strengths, strict=True)
        ]

    def selection(self, place: Place) -> Selection:
        """Which tokens are foreground, by this generation's rule for a transformer there."""
        family = f"colorizediffusion-{self.config.generation}"
        if self.config.generation == "v2":
            family += "-decoder" if place.half == "out" else "-encoder"
        return SEMANTICS[family].selection

    def _published_skip(self, index: int, skip: Tensor, given: Conditioning) -> Tensor:
        if given.maps is None or given.split is None or given.warp_threshold is None:
            return skip
        warped = self.warp_modules[index](skip, given.maps[index])
        return select_skip(skip, warped, given.split.mask, given.warp_threshold)

    def _published_modulation(self, index: int, h: Tensor, embedding: Tensor, given: Conditioning) -> Tensor:
        if given.style is None:
            return h
        return modulate(h, self.style_modules[index](given.style[index], embedding))


def _attend_all(context: Tensor, region: Region | None, strength: Scale) -> Attend:
    return lambda block, h: block.attn2(block.norm2(h), context, strength=strength, region=region)


def _attend_split(context: Tensor, split: Split, place: Place, selection: Selection, strength: Scale) -> Attend:
    return lambda block, h: block.attn2.split(
        block.norm2(h), context, split, selection=selection, scale=place.scale, strength=strength
    )


def _middle_block(config: ColorizeDiffusionConfig, ranks: Ranks) -> Layers:
    deepest = len(config.widths) - 1
    width = config.widths[deepest]
    first, second = (ResidualBlock(width, width, config.time_width) for _ in range(2))
    return Layers([first, spatial_transformer(config, Place("mid", deepest), ranks), second])


def _output_blocks(config: ColorizeDiffusionConfig, ranks: Ranks) -> nn.ModuleList:
    skips, channels = list(config.encoder_widths), config.widths[-1]
    blocks = []
    for index, place in enumerate(config.decoder_places):
        width = config.widths[place.level]
        layers: list[nn.Module] = [ResidualBlock(channels + skips.pop(), width, config.time_width)]
        if place.level < len(config.widths) - 1:
            layers.append(spatial_transformer(config, place, ranks))
        if place.level > 0 and (index + 1) % (config.num_res_blocks + 1) == 0:
            layers.append(Upsample(width))
        blocks.append(Layers(layers))
        channels = width
    return nn.ModuleList(blocks)

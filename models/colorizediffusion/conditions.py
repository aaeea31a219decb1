"""The published preparation: which picture feeds which network, per generation and what is enhanced.

This is the reference that the runtime is compared with, and it shares no code with it. Source: ``config.py`` names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saishiki.models.colorizediffusion.given import Pictures, Preparation
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from saishiki.models.colorizediffusion.sources import Sources


@dataclass(frozen=True)
class Conditions:
    """What conditions the U-Net.

    Args:
        hints, blank_hints: five each, (B, C, ..), of the sketch and of one without lines.
        context: (B, T, W), or with a mask the foreground's tokens and then as many of the background's.
        mask: (B, 1, H / 8, W / 8), where the preparation asks for one.
        maps: twelve of the background encoder; style: twelve vectors of the style encoder; deepest first.
        lora_fg, lora_bg: the LoRAs that are on.
    """

    hints: tuple[Tensor, ...]
    blank_hints: tuple[Tensor, ...]
    context: Tensor
    mask: Tensor | None = None
    maps: tuple[Tensor, ...] | None = None
    style: tuple[Tensor, ...] | None = None
    lora_fg: bool = False
    lora_bg: bool = False

    def repeat(self, times: int) -> "Conditions":
        """All rows, then all rows again."""
        return replace(
            self,
            hints=_repeat_each(self.hints, times),
            blank_hints=_repeat_each(self.blank_hints, times),
            context=_repeat(self.context, times),
            mask=None if self.mask is None else _repeat(self.mask, times),
            maps=None if self.maps is None else _repeat_each(self.maps, times),
            style=None if self.style is None else _repeat_each(self.style, times),
        )


def prepare_conditions(
    network: ColorizeDiffusion, pictures: Pictures, preparation: Preparation, *, noises: Sequence[Tensor] = ()
) -> Conditions:
    """The conditions of one picture.

    Args:
        noises: standard normal, (1, C, H / 8, W / 8) each, one per latent that is sampled, in this order: of the
            reference's style, of the background's style, and else of what the maps are of.

    Raises ``ValueError`` where a picture, a mask, a noise or a network is needed that is not there.
    """
    sources = Sources(network, pictures, preparation, iter(noises))
    return _BY_GENERATION[network.config.generation](sources)


def _v1(sources: Sources) -> Conditions:
    """Both regions' tokens, where the background is enhanced."""
    if not sources.how.bg_enhance:
        return _unmasked(sources)
    return _masked(sources, sources.tokens(sources.reference), sources.tokens(sources.background_or_rest))


def _v15(sources: Sources) -> Conditions:
    """Tokens of a cut-out picture get its threshold's embedding, and the background's are gathered."""
    how = sources.how
    if how.bg_enhance:
        regions = _cut_out_tokens(sources)
        # With the foreground enhanced too upstream hands the whole list to each region.
        tokens = (*regions, *regions) if how.fg_enhance else regions
        return replace(_masked(sources, *tokens), lora_fg=how.fg_enhance, lora_bg=True)
    if how.fg_enhance:
        tokens = (sources.tokens(sources.reference),) * 2
        return replace(_masked(sources, *tokens), lora_fg=True)
    return _unmasked(sources)


def _cut_out_tokens(sources: Sources) -> tuple[Tensor, ...]:
    """Of the foreground and of the background; a background of its own is not gathered."""
    how, network = sources.how, sources.network
    embed = sources.needed(network.thresh_embedder, "a threshold embedder")
    cluster = sources.needed(network.transformer, "a cluster transformer")
    of_reference, of_sketch = embed(torch.tensor([how.reference_threshold, how.sketch_threshold]))
    background = sources.tokens(sources.background_or_rest) + of_reference
    if sources.pictures.background is None:
        background = cluster(background)
    return sources.tokens(sources.reference) + of_sketch, background


def _v2(sources: Sources) -> Conditions:
    """Style vectors where the style is enhanced; maps and both LoRAs where the background is."""
    how, background = sources.how, sources.pictures.background
    style, latent = sources.style() if how.style_enhance else (None, None)
    if how.bg_enhance:
        maps = sources.maps(sources.latent(sources.background_or_rest) if latent is None else latent)
        tokens = (sources.tokens(sources.reference), sources.tokens(sources.background_or_rest))
        return replace(_masked(sources, *tokens), style=style, maps=maps, lora_fg=True, lora_bg=True)
    if how.fg_enhance:
        other = background if background is not None and how.style_enhance else sources.reference
        return replace(_masked(sources, sources.tokens(sources.reference), sources.tokens(other)), style=style)
    return replace(_unmasked(sources), style=style)


_BY_GENERATION = {"v1": _v1, "v1.5": _v15, "v2": _v2}


def _unmasked(sources: Sources) -> Conditions:
    return Conditions(sources.hints(), sources.blank_hints(), sources.reference_tokens_or_zeros())


def _masked(sources: Sources, *tokens: Tensor) -> Conditions:
    """With tokens of the foreground before as many of the background."""
    mask = sources.needed(sources.pictures.sketch_mask, "a mask of the sketch")
    return Conditions(sources.hints(), sources.blank_hints(), torch.cat(tokens, dim=1), mask)


def _repeat(tensor: Tensor, times: int) -> Tensor:
    return tensor.repeat(times, *(1 for _ in tensor.shape[1:]))


def _repeat_each(tensors: tuple[Tensor, ...], times: int) -> tuple[Tensor, ...]:
    return tuple(_repeat(tensor, times) for tensor in tensors)

"""A denoising step with everything hoisted that does not depend on the latent: what an engine runs.

:func:`denoise` computes what :meth:`UNet.forward` computes for the rows of guidance, given keys and values, time
vectors, decided regions and style tables. Source: ``config.py`` names it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saishiki.kernels.masked_split_cross_attention.reference import masked_split_cross_attention_reference
from saishiki.kernels.masked_split_cross_attention.semantics import Selection
from saishiki.kernels.split_projection import split_projection_reference
from saishiki.models.colorizediffusion.config import Region
from saishiki.models.colorizediffusion.cross_attention import CrossAttention
from saishiki.models.colorizediffusion.guidance import ROWS, Hoists, Rows, repeat_rows
from saishiki.models.colorizediffusion.layers import attention
from saishiki.models.colorizediffusion.style_encoder import modulate
from saishiki.models.colorizediffusion.transformer import CrossStep, TransformerBlock, as_given
from saishiki.models.colorizediffusion.unet import Branches, UNet
from saishiki.runtime.pipelines.colorizediffusion import Guidance

DECIDED: Selection = "foreground_above"
DECIDED_THRESHOLD = 0.5
"""How decided regions (1 foreground, 0 background) are compared."""

SplitAttend = Callable[..., Tensor]
"""With the arguments of :func:`~saishiki.kernels.masked_split_cross_attention`, ``merge_scale`` a number or (1,)."""
SplitProject = Callable[..., Tensor]
"""With the arguments of :func:`~saishiki.kernels.split_projection`."""


class RegionQueries(nn.Module):
    """A cross-attention layer's queries of each region.

    Args:
        fg, bg: (C, C), each region's weight with its LoRA merged; bg is None where both are the same.
    """

    def __init__(self, fg: nn.Parameter, bg: nn.Parameter | None) -> None:
        super().__init__()
        self.fg = fg
        self.bg = bg

    def forward(
        self, x: Tensor, foreground: Tensor, *, merging: bool, project: SplitProject
    ) -> tuple[Tensor, Tensor | None]:
        """x: (B, T, C) -> queries of the foreground or of each token's own region, and those of the background.

        The latter are None where the former serve both. ``merging`` asks for both of every token.
        """
        if self.bg is None:
            return F.linear(x, self.fg), None
        if merging:
            return F.linear(x, self.fg), F.linear(x, self.bg)
        own = project(x, self.fg, self.bg, foreground, selection=DECIDED, threshold=DECIDED_THRESHOLD)
        return own, None


def region_queries(layers: Sequence[CrossAttention], *, lora_fg: bool, lora_bg: bool) -> nn.ModuleList:
    """One :class:`RegionQueries` per layer, with the LoRAs merged that are on and that the layer has."""
    return nn.ModuleList(_queries_of(layer, lora_fg, lora_bg) for layer in layers)


def _queries_of(layer: CrossAttention, lora_fg: bool, lora_bg: bool) -> RegionQueries:
    switched: dict[Region, bool] = {"fg": lora_fg, "bg": lora_bg}
    fg, bg = (region if on and region in layer.to_q.regions else None for region, on in switched.items())
    return RegionQueries(layer.to_q.merged(fg), None if fg == bg else layer.to_q.merged(bg))


@dataclass(frozen=True)
class Regions:
    """What a mask-guided step takes besides keys and values.

    Args:
        foreground: (B, T) fp32 by ``Place.name``: 1 where a token is foreground, 0 where it is background, as this
            generation decides there.
        queries: of :func:`region_queries`.
        merge_scale: (1,), the background's share in the foreground's result; None where nothing is merged.
        attend, project: the two operators, by default in plain torch.
    """

    foreground: Mapping[str, Tensor]
    queries: Sequence[RegionQueries] | nn.ModuleList
    merge_scale: Tensor | None = None
    attend: SplitAttend = masked_split_cross_attention_reference
    project: SplitProject = split_projection_reference


@dataclass(frozen=True)
class Constants:
    """What a step takes besides the latent and the time.

    Args:
        hints: five of (B, C, ..); with sketch guidance (2 * B, C, ..), the conditional ones first.
        keys, values: sixteen of (B, tokens, C), of the context alone, the values times the block's strength and, in a
            mask-guided step, their region's scale; then the foreground's tokens come first.
        regions: makes the step a mask-guided one.
        warp_keys, warp_values: twelve of (B, tokens, inner), deepest first; with ``regions`` only, whose foreground
            then names the places of all decoder blocks.
        modulation: (B, sum of 2 C), scale and shift of the decoder blocks side by side; zeros change nothing.
    """

    hints: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    regions: Regions | None = None
    warp_keys: Sequence[Tensor] | None = None
    warp_values: Sequence[Tensor] | None = None
    modulation: Tensor | None = None


def denoise(
    unet: UNet,
    x: Tensor,
    time: Tensor,
    constants: Constants,
    *,
    guidance: Guidance = "none",
    hoists: Hoists | None = None,
) -> Tensor:
    """The prediction of every row: (slots * B, 4, h, w); conditional, zero context, no sketch, as far as there are any.

    Args:
        x: (B, 4, h, w), once per picture; time: (B, P), of :meth:`UNet.time_projections`.
    """
    step = _Step(unet, constants, ROWS[guidance], Hoists() if hoists is None else hoists)
    return unet.walk(x if step.hoists.prefix else repeat_rows(x, step.rows.slots), step.branches(time))


@dataclass(frozen=True)
class _Step:
    """One call of :func:`denoise`."""

    unet: UNet
    constants: Constants
    rows: Rows
    hoists: Hoists

    @property
    def rows_of_prefix(self) -> int:
        """Rows per picture before the first cross-attention."""
        return self.rows.drawn if self.hoists.prefix else self.rows.slots

    @property
    def rows_attending(self) -> int:
        """Rows per picture that cross-attention computes."""
        return self.rows.drawn if self.hoists.guidance else self.rows.slots

    def branches(self, time: Tensor) -> Branches:
        rows, shared = self.rows, self.hoists.prefix
        first, *_ = self.unet.split_times(repeat_rows(time, self.rows_of_prefix))
        _, *others = self.unet.split_times(repeat_rows(time, rows.slots))
        stem_hint, *hints = self.constants.hints
        return Branches(
            times=[first, *others],
            steps=[self.cross_step(index) for index in range(len(self.constants.keys))],
            hints=[stem_hint if shared else rows.widen(stem_hint), *(rows.widen(hint) for hint in hints)],
            widen_stem=(lambda h: repeat_rows(h, rows.drawn)) if shared else as_given,
            skip=self.skip,
            modulate=self.modulator(),
        )

    def cross_step(self, index: int) -> CrossStep:
        attended = self.attender(index)

        def attend(block: TransformerBlock, h: Tensor) -> Tensor:
            if not self.hoists.guidance:
                return block.attn2.project_output(attended(block.attn2, block.norm2(h)))
            with_context = attended(block.attn2, block.norm2(self.rows.with_context(h)))
            return block.attn2.project_output(with_context, self.rows.insert_empty if self.rows.has_empty else None)

        return CrossStep(attend, self.rows.widen if index == 0 and self.hoists.prefix else as_given)

    def attender(self, index: int) -> Callable[[CrossAttention, Tensor], Tensor]:
        """(layer, tokens of the rows that attend) -> what they gather, before the output projection."""
        k, v = self.constants.keys[index], self.constants.values[index]
        copies = self.rows.drawn
        if not self.hoists.guidance:
            k, v = (self.rows.insert_empty(repeat_rows(x, copies), x.new_zeros(1)) for x in (k, v))
            copies = 1
        regions = self.constants.regions
        if regions is None:
            return lambda layer, x: attention(layer.to_q(x), k, v, layer.heads, copies=copies)
        k, v = repeat_rows(k, copies), repeat_rows(v, copies)
        place = self.unet.config.transformer_places[index]
        foreground = repeat_rows(regions.foreground[place.name], self.rows_attending)
        return lambda layer, x: attend_by_region(layer, x, (k, v), foreground, regions, index)

    def skip(self, index: int, skip: Tensor) -> Tensor:
        # The last skip to be taken is the stem's, from before rows with and without context part.
        is_prefix = self.hoists.prefix and index == len(self.unet.output_blocks) - 1
        copies = self.rows.drawn if is_prefix else self.rows.slots
        skip = self.warped(index, skip, copies)
        return self.rows.widen(skip) if is_prefix else skip

    def warped(self, index: int, skip: Tensor, copies: int) -> Tensor:
        given = self.constants
        if given.regions is None or given.warp_keys is None or given.warp_values is None:
            return skip
        warped = self.unet.warp(index, skip, given.warp_keys[index], given.warp_values[index], copies=copies)
        foreground = given.regions.foreground[self.unet.config.decoder_places[index].name]
        image = repeat_rows(foreground, copies).reshape(-1, 1, *skip.shape[2:])
        return torch.where(image > DECIDED_THRESHOLD, skip, warped)

    def modulator(self) -> Callable[[int, Tensor], Tensor]:
        if self.constants.modulation is None:
            return lambda index, h: h
        modulation = repeat_rows(self.constants.modulation, self.rows.slots)
        vectors = torch.split(modulation, list(self.unet.config.style_widths), dim=1)
        return lambda index, h: modulate(h, vectors[index])


def attend_by_region(
    layer: CrossAttention, x: Tensor, kv: tuple[Tensor, Tensor], foreground: Tensor, regions: Regions, index: int
) -> Tensor:
    """What each token (B, T, C) gathers from its region's half of the context, before the output projection."""
    merging = regions.merge_scale is not None
    q, q_bg = regions.queries[index](x, foreground, merging=merging, project=regions.project)
    return regions.attend(
        q,
        *kv,
        foreground,
        heads=layer.heads,
        selection=DECIDED,
        threshold=DECIDED_THRESHOLD,
        merge_scale=regions.merge_scale if merging else 0.0,
        q_bg=q_bg,
    )

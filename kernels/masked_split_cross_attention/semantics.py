"""How each generation of ColorizeDiffusion chooses between foreground and background; plain Python.

Source: the published implementations (tellurion-kanata/ColorizeDiffusion and ColorizeDiffusionXL), observed from
outside.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypedDict, get_args

Selection = Literal["foreground_above", "background_below", "blend"]
"""What a token is, by its mask value: foreground where ``mask > threshold`` (equality is background), background where
``mask < threshold`` (equality is foreground), or ``mask`` parts of the one and ``1 - mask`` of the other."""

SELECTIONS: tuple[Selection, ...] = get_args(Selection)
"""In the order of the kernel's argument ``selection``: 0, 1, 2."""


class SplitArguments(TypedDict):
    """Arguments of ``masked_split_cross_attention``."""

    selection: Selection
    threshold: float
    fg_scale: float
    bg_scale: float
    merge_scale: float


@dataclass(frozen=True)
class SplitSemantics:
    """One generation's rule.

    Args:
        selection: where nothing is merged.
        selection_merging: where ``merge_scale`` is above 0.
        scales_unmerged: whether ``fg_scale`` and ``bg_scale`` count where nothing is merged.
    """

    selection: Selection
    selection_merging: Selection
    scales_unmerged: bool

    def arguments(self, *, threshold: float, fg_scale: float, bg_scale: float, merge_scale: float) -> SplitArguments:
        """The op's arguments, from what a user of this generation sets."""
        merging = merge_scale > 0
        scaled = merging or self.scales_unmerged
        return SplitArguments(
            selection=self.selection_merging if merging else self.selection,
            threshold=threshold,
            fg_scale=fg_scale if scaled else 1.0,
            bg_scale=bg_scale if scaled else 1.0,
            merge_scale=merge_scale,
        )


_ABOVE = SplitSemantics("foreground_above", "foreground_above", scales_unmerged=True)
_BELOW = SplitSemantics("background_below", "background_below", scales_unmerged=True)
_XL = SplitSemantics("foreground_above", "background_below", scales_unmerged=False)
_BLEND = SplitSemantics("blend", "blend", scales_unmerged=True)

SEMANTICS: Mapping[str, SplitSemantics] = MappingProxyType(
    {
        "colorizediffusion-v1": _BELOW,
        "colorizediffusion-v1.5": _ABOVE,
        "colorizediffusion-v2-encoder": _BELOW,
        "colorizediffusion-v2-decoder": _ABOVE,
        "colorizediffusion-xl": _XL,
        "colorizediffusion-xl-adapter": _BLEND,
    }
)
"""By family; v2's middle block goes with its encoder."""

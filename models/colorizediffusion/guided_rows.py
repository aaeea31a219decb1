"""The published U-Net on the rows of classifier-free guidance, nothing shared between them.

This is the reference that the hoisted denoiser is compared with. Source: ``config.py`` names it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saishiki.models.colorizediffusion.conditions import Conditions
from saishiki.models.colorizediffusion.cross_attention import Split
from saishiki.models.colorizediffusion.unet import Conditioning, UNet
from saishiki.runtime.pipelines.colorizediffusion import Guidance

Slot = Callable[[Conditions], Conditions]


@dataclass(frozen=True)
class Attending:
    """How strongly the regions and the blocks attend.

    Args:
        strengths: of each of the sixteen cross-attentions, or None for 1 everywhere.
        fg_scale, bg_scale, merge_scale: of a mask-guided call.
        threshold: of its mask; warped skips have the same.
    """

    strengths: Sequence[float] | None = None
    fg_scale: float = 1.0
    bg_scale: float = 1.0
    merge_scale: float = 0.0
    threshold: float = 0.05


def without_context(conditions: Conditions) -> Conditions:
    """With a context of zeros: the row that reference guidance leads away from."""
    return replace(conditions, context=torch.zeros_like(conditions.context))


def without_sketch(conditions: Conditions) -> Conditions:
    """With the hints of a sketch without lines: the row that sketch guidance leads away from."""
    return replace(conditions, hints=conditions.blank_hints)


UNCONDITIONAL: Mapping[Guidance, tuple[Slot, ...]] = {
    "none": (),
    "reference": (without_context,),
    "sketch": (without_sketch,),
    "both": (without_context, without_sketch),
}
"""The slots behind the conditional one, in order."""


def predict_rows(
    unet: UNet, x: Tensor, t: Tensor, conditions: Conditions, *, guidance: Guidance, how: Attending
) -> Tensor:
    """(slots * B, C, h, w): the predictions slot by slot, each slot with all pictures.

    Args:
        x: (B, C, h, w); t: (B,); conditions: of B pictures.
    """
    slots = (conditions, *(slot(conditions) for slot in UNCONDITIONAL[guidance]))
    hints = [torch.cat(hints) for hints in zip(*(slot.hints for slot in slots), strict=True)]
    context = torch.cat([slot.context for slot in slots])
    given = _conditioning(conditions.repeat(len(slots)), how)
    x, t = x.repeat(len(slots), 1, 1, 1), t.repeat(len(slots))
    prediction: Tensor = unet(x, t, hints, context, conditioning=given)
    return prediction


def _conditioning(conditions: Conditions, how: Attending) -> Conditioning:
    split = None
    if conditions.mask is not None:
        split = Split(
            conditions.mask,
            threshold=how.threshold,
            fg_scale=how.fg_scale,
            bg_scale=how.bg_scale,
            merge_scale=how.merge_scale,
            lora_fg=conditions.lora_fg,
            lora_bg=conditions.lora_bg,
        )
    return Conditioning(
        strengths=how.strengths,
        split=split,
        maps=conditions.maps,
        warp_threshold=how.threshold,
        style=conditions.style,
    )

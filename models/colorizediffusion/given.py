"""What a user gives: pictures, masks, and how conditions are made of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from saishiki.runtime.pipelines.colorizediffusion import Mode


@dataclass(frozen=True)
class Pictures:
    """What a picture is made from; :mod:`pictures` says in which form.

    Args:
        sketch: (1, 3, H, W) of the size to generate, bright lines on dark.
        reference, background: at their own sizes.
        reference_mask: of the reference's size.
        sketch_mask: (1, 1, H / 8, W / 8).
    """

    sketch: Tensor
    reference: Tensor | None = None
    background: Tensor | None = None
    reference_mask: Tensor | None = None
    sketch_mask: Tensor | None = None


@dataclass(frozen=True)
class Preparation:
    """How it is made: names and defaults of the published interface.

    Args:
        style_enhance, bg_enhance, fg_enhance: what a generation does not have does nothing; see ``ENHANCED`` for modes.
        control_scale: of the sketch's hints; merge_scale: of the background in what is the reference's.
        background_factor: of the background encoder's maps.
        reference_threshold, sketch_threshold: of the masks.
    """

    style_enhance: bool = False
    bg_enhance: bool = False
    fg_enhance: bool = False
    control_scale: float = 1.0
    merge_scale: float = 0.0
    background_factor: float = 1.0
    reference_threshold: float = 0.5
    sketch_threshold: float = 0.05


ENHANCED: Mapping[Mode, Preparation] = {
    "vanilla": Preparation(),
    "style": Preparation(style_enhance=True),
    "background": Preparation(bg_enhance=True),
    "full": Preparation(style_enhance=True, bg_enhance=True),
    "foreground": Preparation(fg_enhance=True),
    "foreground+background": Preparation(fg_enhance=True, bg_enhance=True),
}
"""What each mode enhances."""

"""Which denoiser runs which mode: plain data that the export and the runtime share.

A denoiser is exported once for every combination that changes its graph: how many rows guidance adds, whether
cross-attention is split by a mask, which LoRAs are merged into its queries, whether skips are warped, and whether the
two regions are merged. Source: the published code's preparation of its conditions, per generation.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

Guidance = Literal["none", "reference", "sketch", "both"]
Generation = Literal["v1", "v1.5", "v2"]
Mode = Literal["vanilla", "style", "background", "full", "foreground", "foreground+background"]

GUIDANCES: tuple[Guidance, ...] = get_args(Guidance)
GENERATIONS: tuple[Generation, ...] = get_args(Generation)

SLOTS: Mapping[Guidance, int] = {"none": 1, "reference": 2, "sketch": 2, "both": 3}
"""Rows of a prediction for every picture: conditional, zero context (reference), no sketch (sketch)."""

MODES: Mapping[Generation, tuple[Mode, ...]] = {
    "v1": ("vanilla", "background"),
    "v1.5": ("vanilla", "background", "foreground", "foreground+background"),
    "v2": ("vanilla", "style", "background", "full", "foreground"),
}
"""The modes that a generation has."""


@dataclass(frozen=True)
class DenoiserVariant:
    """What one exported denoiser computes.

    Attributes:
        guidance: which unconditional rows it adds to every picture's own.
        split: cross-attention over foreground and background tokens, chosen by a mask at every position.
        lora_fg: the foreground branch's queries hold the foreground LoRA.
        lora_bg: the background branch's queries hold the background LoRA.
        warp: skips are replaced by warped background features where the mask says background.
        merge: the foreground branch takes a share (``merge_scale``) of the background branch.
    """

    guidance: Guidance
    split: bool = False
    lora_fg: bool = False
    lora_bg: bool = False
    warp: bool = False
    merge: bool = False

    def __post_init__(self) -> None:
        if not self.split and (self.lora_fg or self.lora_bg or self.warp or self.merge):
            raise ValueError(f"LoRAs, warp and merge belong to split cross-attention, got {self!r}")

    @property
    def slots(self) -> int:
        """Rows of its prediction for every picture."""
        return SLOTS[self.guidance]

    @property
    def module_name(self) -> str:
        """Its name among a bundle's modules, such as ``denoiser_split_fg_bg_warp_both``."""
        parts = {"split": self.split, "fg": self.lora_fg, "bg": self.lora_bg, "warp": self.warp, "merge": self.merge}
        named = [part for part, on in parts.items() if on] or ["vanilla"]
        return "_".join(["denoiser", *named, self.guidance])


def variant_of(generation: Generation, mode: Mode, guidance: Guidance, merge: bool) -> DenoiserVariant:
    """The denoiser of a mode: LoRAs as the published preparation turns them on.

    ``merge`` is ignored by modes without a mask. Raises ``ValueError`` for a mode that the generation does not have.
    """
    check_mode(generation, mode)
    if mode in ("vanilla", "style"):
        return DenoiserVariant(guidance)
    background = mode != "foreground"
    return DenoiserVariant(
        guidance,
        split=True,
        lora_fg=_foreground_lora(generation, mode),
        lora_bg=background and generation != "v1",
        warp=background and generation == "v2",
        merge=merge,
    )


def variants_of(
    generation: Generation, modes: Iterable[Mode], guidances: Iterable[Guidance], *, merge: bool
) -> tuple[DenoiserVariant, ...]:
    """The distinct denoisers that modes and guidances need, in order; with ``merge`` those that merge too.

    Raises ``ValueError`` for a mode that the generation does not have.
    """
    merges = (False, True) if merge else (False,)
    wanted = (variant_of(generation, *choice) for choice in product(modes, guidances, merges))
    return tuple(dict.fromkeys(wanted))


def check_mode(generation: Generation, mode: str) -> None:
    """Raises ``ValueError``, listing the modes, where the generation does not have this one."""
    if mode not in MODES[generation]:
        raise ValueError(f"ColorizeDiffusion {generation} has no mode {mode!r}; it has {', '.join(MODES[generation])}")


def _foreground_lora(generation: Generation, mode: Mode) -> bool:
    # v2 trains one LoRA for each branch of "background"; v1.5 has a foreground mode of its own.
    return mode != "foreground" if generation == "v2" else generation == "v1.5" and mode != "background"

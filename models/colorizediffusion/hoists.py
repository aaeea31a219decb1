"""What an exported denoiser need not compute in every step; each of it can be switched off."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from saishiki.models.colorizediffusion.guidance import Hoists


@dataclass(frozen=True)
class DenoiserHoists:
    """Which computations are taken out of the denoiser. All of them are exact.

    Attributes:
        time: the residual blocks' time vectors, computed once per schedule.
        kv: keys and values of the sixteen cross-attentions, with LoRAs merged, strengths and region scales applied.
        masks: which tokens of every level are foreground.
        style: scale and shift of the decoder blocks (v2), computed once per schedule.
        warp: keys and values of the background's maps (v2).
        guidance: rows without context take a bias instead of attending to zeros.
        prefix: what rows with and without context share is computed once.
    """

    time: bool = True
    kv: bool = True
    masks: bool = True
    style: bool = True
    warp: bool = True
    guidance: bool = True
    prefix: bool = True

    @property
    def of_rows(self) -> Hoists:
        """Those that are about the rows that guidance adds."""
        return Hoists(guidance=self.guidance, prefix=self.prefix)

    @property
    def switched_off(self) -> tuple[str, ...]:
        """The names of those that are off."""
        return tuple(name for name in HOISTS if not getattr(self, name))


HOISTS: tuple[str, ...] = tuple(field.name for field in fields(DenoiserHoists))
PLAIN = DenoiserHoists(**dict.fromkeys(HOISTS, False))
"""A denoiser that computes everything itself."""


def hoists_without(names: Iterable[str]) -> DenoiserHoists:
    """All hoists but the named ones; raises ``ValueError`` for a name that is none."""
    off = tuple(names)
    if unknown := [name for name in off if name not in HOISTS]:
        raise ValueError(f"no hoist {', '.join(unknown)}: expected some of {', '.join(HOISTS)}")
    return DenoiserHoists(**{name: name not in off for name in HOISTS})

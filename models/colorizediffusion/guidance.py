"""Guidance inside the denoiser: which rows a picture has, and what they need not compute.

Rows lie slot by slot, each slot with all pictures: conditional, zero context (u0), no sketch (u1). A row without
context gets from every cross-attention exactly its output bias, since keys and values have none; and up to the first of
them it is its conditional row. Both are facts of the published network, not approximations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from saishiki.runtime.pipelines.colorizediffusion import Guidance


@dataclass(frozen=True)
class Hoists:
    """What is saved where guidance adds rows; without one, the same is computed row by row.

    Args:
        guidance: rows without context take the bias of each cross-attention instead of attending to zeros.
        prefix: what rows with and without context share before the first cross-attention is computed once.
    """

    guidance: bool = True
    prefix: bool = True


@dataclass(frozen=True)
class Rows:
    """The rows of one picture.

    Args:
        drawn: slots with hints of their own, which are also those with a context: conditional, and u1.
        has_empty: whether u0 is there, after the conditional row.
    """

    drawn: int
    has_empty: bool

    @property
    def slots(self) -> int:
        """All rows of one picture."""
        return self.drawn + self.has_empty

    def widen(self, x: Tensor) -> Tensor:
        """(slots * B, ..) from (drawn * B, ..): u0 as a copy of the conditional row."""
        if not self.has_empty:
            return x
        conditional, *others = self._by_slot(x, self.drawn)
        return torch.cat([conditional, conditional, *others])

    def with_context(self, x: Tensor) -> Tensor:
        """(drawn * B, ..) from (slots * B, ..): without u0."""
        if not self.has_empty:
            return x
        conditional, _, *others = self._by_slot(x, self.slots)
        return torch.cat([conditional, *others]) if others else conditional

    def insert_empty(self, x: Tensor, value: Tensor) -> Tensor:
        """(slots * B, .., C) from (drawn * B, .., C): u0 holds value, (C,) or a number."""
        if not self.has_empty:
            return x
        conditional, *others = self._by_slot(x, self.drawn)
        return torch.cat([conditional, value.expand_as(conditional), *others])

    @staticmethod
    def _by_slot(x: Tensor, slots: int) -> tuple[Tensor, ...]:
        return x.reshape(slots, -1, *x.shape[1:]).unbind() if slots > 1 else (x,)


ROWS: Mapping[Guidance, Rows] = MappingProxyType(
    {"none": Rows(1, False), "reference": Rows(1, True), "sketch": Rows(2, False), "both": Rows(2, True)}
)


def repeat_rows(x: Tensor, times: int) -> Tensor:
    """(times * B, ..) from (B, ..): all rows, then all rows again."""
    return x if times == 1 else x.repeat(times, *(1 for _ in x.shape[1:]))

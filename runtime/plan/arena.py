"""Where the buffers of a plan lie: one arena, in which buffers that are never alive together share memory."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from saishiki.runtime.plan.extents import Extents
from saishiki.runtime.plan.plan import Plan

ALIGNMENT_BYTES = 256


@dataclass(frozen=True)
class Lifetime:
    """The first and the last operation that touch a buffer, and its bytes, rounded up to the alignment."""

    first: int
    last: int
    nbytes: int

    def meets(self, other: "Lifetime") -> bool:
        """Whether both are alive during some operation."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """The layout: where each buffer begins, the bytes of all, and the fewest that any layout could have."""

    offsets: Mapping[str, int]
    nbytes: int
    least_bytes: int


def lifetimes(plan: Plan, extents: Extents, kept: Set[str] = frozenset()) -> dict[str, Lifetime]:
    """When each buffer is alive. An operation's results and operands are alive together: none computes in place.

    Args:
        kept: buffers that stay alive to the end.
    """
    end = len(plan.ops) - 1
    touched: dict[str, list[int]] = {}
    for place, _, names in plan.uses():
        for name in names:
            if name in plan.buffers:
                touched.setdefault(name, []).append(place)
    return {
        name: Lifetime(min(places), end if name in kept else max(places), _aligned(extents.nbytes(name)))
        for name, places in touched.items()
    }


def lay_out(plan: Plan, extents: Extents, kept: Set[str] = frozenset()) -> Arena:
    """Places buffers from the largest to the smallest, each in the smallest gap between those it meets.

    Source: "Greedy by Size for Offset Calculation" of Pisarchyk and Lee, Efficient Memory Management for Deep Neural
    Net Inference (2020).
    """
    alive = lifetimes(plan, extents, kept)
    offsets: dict[str, int] = {}
    for name in sorted(alive, key=lambda name: (-alive[name].nbytes, alive[name].first, name)):
        met = sorted((offsets[other], alive[other].nbytes) for other in offsets if alive[other].meets(alive[name]))
        offsets[name] = _smallest_gap(met, alive[name].nbytes)
    ends = (offset + alive[name].nbytes for name, offset in offsets.items())
    return Arena(offsets, max(ends, default=0), _least_bytes(alive))


def _smallest_gap(taken: list[tuple[int, int]], nbytes: int) -> int:
    """Where ``nbytes`` fit most closely between the places that are taken, else behind them."""
    best: tuple[int, int] | None = None
    end = 0
    for offset, length in taken:
        gap = offset - end
        if gap >= nbytes and (best is None or gap < best[0]):
            best = gap, end
        end = max(end, offset + length)
    return end if best is None else best[1]


def _least_bytes(alive: Mapping[str, Lifetime]) -> int:
    """The most bytes that are alive during one operation: no layout needs less."""
    places = {life.first for life in alive.values()}
    return max(
        (sum(life.nbytes for life in alive.values() if life.first <= place <= life.last) for place in places), default=0
    )


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

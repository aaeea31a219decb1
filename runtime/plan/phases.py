"""What of a plan depends on its changing inputs, and what is computed once for as long as the others stay."""

from collections.abc import Set
from dataclasses import dataclass

import msgspec

from saishiki.runtime.plan.plan import Plan


@dataclass(frozen=True)
class Phases:
    """A plan in two phases.

    Args:
        plan: the same operations, those that depend on nothing that changes in front.
        constant: how many these are.
        kept: the buffers that they leave for the others, alive for as long as the plan is run.
    """

    plan: Plan
    constant: int
    kept: frozenset[str]


def split_phases(plan: Plan, changing: Set[str]) -> Phases:
    """The plan as it is run again and again while only some of its inputs change.

    A cast of keys and values, or a projection of background features, is then done once per picture. Outputs are
    always computed anew, and so is all of a buffer of which a part changes.

    Args:
        changing: names of inputs.
    """
    moving = _moving(plan, changing)
    constant = [op for op in plan.ops if moving.isdisjoint((*op.reads(), *op.writes()))]
    changed = [op for op in plan.ops if not moving.isdisjoint((*op.reads(), *op.writes()))]
    kept = {name for op in constant for name in op.writes()} & {name for op in changed for name in op.reads()}
    return Phases(msgspec.structs.replace(plan, ops=(*constant, *changed)), len(constant), frozenset(kept))


def _moving(plan: Plan, changing: Set[str]) -> set[str]:
    """The tensors that change: what is computed from changing ones, and what is written beside them."""
    moving = set(changing) | {name for name, hoisted in plan.hoisted.items() if hoisted.input in changing}
    moving |= {name for op in plan.ops for name in op.writes() if name not in plan.buffers}
    while True:
        found = {name for op in plan.ops if not moving.isdisjoint((*op.reads(), *op.writes())) for name in op.writes()}
        if found <= moving:
            return moving
        moving |= found

"""Norms folded into the convolutions behind them, for a library that normalises what a convolution reads."""

from collections.abc import Mapping

import msgspec

from saishiki.runtime.plan.ops import AnyOp, Convolution, NormApply
from saishiki.runtime.plan.plan import Plan


def fold_norms(plan: Plan) -> Plan:
    """The plan without those norms, and without their results in memory, that one convolution alone reads.

    A norm stays where it puts its input together (concat, upsampling, residual, a copy for others), since a
    convolution reads one buffer as it lies; and in front of an image of the interface.
    """
    touching: dict[str, list[int]] = {}
    for place, _, names in plan.uses():
        for name in names:
            touching.setdefault(name, []).append(place)
    norms = {op.out: op for op in plan.ops if isinstance(op, NormApply)}
    folded = {out: norm for out, norm in norms.items() if _folds(plan, norm, touching[out])}
    kept = [op for op in plan.ops if not (isinstance(op, NormApply) and op.out in folded)]
    return msgspec.structs.replace(
        plan,
        buffers={name: buffer for name, buffer in plan.buffers.items() if name not in folded},
        ops=tuple(_with_norm(op, folded) for op in kept),
    )


def _folds(plan: Plan, norm: NormApply, touching: list[int]) -> bool:
    """Whether a norm can be left to who reads it.

    Args:
        touching: the places of the operations that read or write its result.
    """
    x = norm.input.x
    if norm.input.names() != (x,) or norm.input.upsample or norm.dense or norm.out not in plan.buffers:
        return False
    if plan.buffers.get(x) != plan.buffers[norm.out]:
        return False
    place, *reading = touching
    if len(reading) != 1 or not _takes(plan.ops[reading[0]], norm.out):
        return False
    between = {name for op in plan.ops[place + 1 : reading[0]] for name in op.writes()}
    return between.isdisjoint(norm.reads())


def _takes(op: AnyOp, pictures: str) -> bool:
    """Whether an operation is a convolution that can normalise these pictures."""
    if not isinstance(op, Convolution) or op.from_images or op.to_image or op.norm:
        return False
    return op.x == (pictures,)


def _with_norm(op: AnyOp, folded: Mapping[str, NormApply]) -> AnyOp:
    if not isinstance(op, Convolution) or op.x[0] not in folded:
        return op
    norm = folded[op.x[0]]
    return msgspec.structs.replace(op, x=(norm.input.x,), norm=norm.norm)

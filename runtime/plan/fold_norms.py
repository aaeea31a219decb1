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
    folded = {op.out: op for place, op in enumerate(plan.ops) if isinstance(op, NormApply) and _folds(plan, place, op)}
    kept = [op for op in plan.ops if not (isinstance(op, NormApply) and op.out in folded)]
    return msgspec.structs.replace(
        plan,
        buffers={name: buffer for name, buffer in plan.buffers.items() if name not in folded},
        ops=tuple(_with_norm(op, folded) for op in kept),
    )


def _folds(plan: Plan, place: int, norm: NormApply) -> bool:
    x = norm.input.x
    if norm.input.names() != (x,) or norm.input.upsample or norm.dense or norm.out not in plan.buffers:
        return False
    if plan.buffers.get(x) != plan.buffers[norm.out]:
        return False
    touching = [other for other, _, names in plan.uses() if other != place and norm.out in names]
    if len(touching) != 1 or touching[0] < place or not _takes(plan.ops[touching[0]], norm.out):
        return False
    between = {name for op in plan.ops[place + 1 : touching[0]] for name in op.writes()}
    return between.isdisjoint(norm.reads())


def _takes(op: AnyOp, pictures: str) -> bool:
    """Whether an operation is a convolution that can normalise these pictures, which it reads once."""
    if not isinstance(op, Convolution) or op.from_images or op.to_image or op.norm:
        return False
    return op.x == (pictures,) and op.residual != pictures


def _with_norm(op: AnyOp, folded: Mapping[str, NormApply]) -> AnyOp:
    if not isinstance(op, Convolution) or op.x[0] not in folded:
        return op
    norm = folded[op.x[0]]
    return msgspec.structs.replace(op, x=(norm.input.x,), norm=norm.norm)

"""Runs a plan by the references of its operations, in an arena laid out as on a GPU: slow, exact, needs numpy alone."""

from collections.abc import Mapping

import numpy as np

from saishiki.runtime.plan.arena import Arena, lay_out
from saishiki.runtime.plan.extents import Extents, Tensors
from saishiki.runtime.plan.plan import Plan
from saishiki.runtime.signature import Array, Signature

_NAN_BYTE = 0xFF  # NaN in every float dtype, -1 in integers


def interpret(
    plan: Plan,
    signature: Signature,
    weights: Mapping[str, Array],
    inputs: Mapping[str, Array],
    *,
    arena: Arena | None = None,
) -> dict[str, Array]:
    """The outputs of a module. Memory that nothing wrote to reads as NaN.

    Args:
        arena: another layout than :func:`~saishiki.runtime.plan.arena.lay_out` gives.

    Raises ``ValueError`` for inputs that do not fit the signature.
    """
    sizes = signature.sizes_from_arrays(inputs)
    extents = plan.extents(signature, sizes)
    arena = lay_out(plan, extents) if arena is None else arena
    outputs = {spec.name: np.full(spec.shape(sizes), np.nan, spec.dtype) for spec in signature.outputs}
    hoisted = {name: plan.hoist(name, inputs[vector.input], weights) for name, vector in plan.hoisted.items()}
    stored = {name: weights[name] for name in plan.weights}
    tensors = Tensors(sizes, {**stored, **inputs, **hoisted, **_buffers(extents, arena), **outputs})
    # As on a GPU: what overflows becomes infinite, and is seen in the result.
    with np.errstate(over="ignore", invalid="ignore"):
        for op, born in zip(plan.ops, _born(plan), strict=True):
            for name in born:
                tensors[name].view(np.uint8).fill(_NAN_BYTE)
            op.compute(tensors)
    return outputs


def _born(plan: Plan) -> list[list[str]]:
    """For each operation, the buffers that nothing touched before: their memory may hold what was another's."""
    touched: set[str] = set()
    born = []
    for _, _, names in plan.uses():
        born.append([name for name in names if name in plan.buffers and name not in touched])
        touched |= set(names)
    return born


def _buffers(extents: Extents, arena: Arena) -> dict[str, Array]:
    memory = np.full(arena.nbytes, _NAN_BYTE, np.uint8)
    views = {}
    for name, offset in arena.offsets.items():
        extent = extents.of[name]
        views[name] = memory[offset : offset + extent.nbytes].view(extent.dtype).reshape(extent.shape)
    return views

"""What a plan amounts to at given sizes, and which of its launches no shipped kernel makes."""

from collections import Counter
from typing import Any

from saishiki.runtime.backends.cubins import CubinIndex, find_cubin, grid_of, packed_arguments, read_cubin_index
from saishiki.runtime.backends.launches import launches_of
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan import Plan, lay_out
from saishiki.runtime.plan.extents import Extents
from saishiki.runtime.plan.ops import AnyOp
from saishiki.runtime.plan.phases import split_phases
from saishiki.runtime.plan.time_model import GPUS, modelled_plan_s
from saishiki.runtime.signature import Signature, Sizes

Row = dict[str, Any]

CHANGING = frozenset({"x", "noisy", "time", "modulation"})
"""Inputs of denoisers that are new in every step; what depends on none of them is computed once per picture."""
TARGETS = ("sm80", "sm86", "sm89", "sm90", "sm120")
SMS = 132
"""Multiprocessors to divide launches for."""
AN_ADDRESS = 4096
"""Aligned as all memory is; nothing is launched."""


def count(plan: Plan, signature: Signature, sizes: Sizes) -> Row:
    """One row of a result."""
    extents = plan.extents(signature, sizes)
    arena = lay_out(plan, extents)
    costs = [op.cost(extents) for op in plan.ops]
    return {
        "sizes": dict(sizes),
        "launches": len(plan.ops),
        "once_per_picture": once_per_picture(plan, signature),
        "kinds": dict(Counter(str(op.__struct_config__.tag) for op in plan.ops)),
        "gflop": round(sum(cost.flops for cost in costs) / 1e9, 2),
        "mb": round(sum(cost.bytes for cost in costs) / 1e6, 1),
        "arena_mb": round(arena.nbytes / 1e6, 2),
        "least_arena_mb": round(arena.least_bytes / 1e6, 2),
        "modelled_ms": {gpu.name: round(modelled_plan_s(plan, extents, gpu) * 1e3, 3) for gpu in GPUS},
        "without_kernel": without_kernel(plan, extents),
    }


def once_per_picture(plan: Plan, signature: Signature) -> int:
    """Launches before a loop's first step; 0 for a module that is in no loop."""
    changing = CHANGING & {spec.name for spec in signature.inputs}
    return split_phases(plan, changing).constant if changing else 0


def without_kernel(plan: Plan, extents: Extents) -> dict[str, int]:
    """Operations by the reason why no shipped kernel computes them on all GPUs; none of a plan in fp32, which is run
    by numpy.
    """
    if plan.dtype != "float16":
        return {}
    index = read_cubin_index()
    reasons = (_why_not(op, extents, index) for op in plan.ops)
    return dict(Counter(reason for reason in reasons if reason))


def _why_not(op: AnyOp, extents: Extents, index: CubinIndex) -> str | None:
    try:
        for launch in launches_of(op, extents, lambda name: AN_ADDRESS, sms=SMS):
            for target in TARGETS:
                entry = find_cubin(index, launch.kernel, target)
                packed_arguments(entry, launch.arguments)
                grid_of(entry, launch.arguments)
    except (BackendError, ValueError) as error:
        return str(error)
    return None

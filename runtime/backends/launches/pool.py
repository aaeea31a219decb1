"""Launches of averages, by the kernels of ``saishiki.kernels.average_pool`` and ``saishiki.kernels.mean``."""

import math

from saishiki.runtime.backends.launches.launch import Address, Launch
from saishiki.runtime.backends.launches.operand import require_dtypes
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.extents import Extents
from saishiki.runtime.plan.ops import Mean, Pool

UNIT = 8
"""What channels are a multiple of: 16 bytes of fp16 at a time."""


def pool_launches(op: Pool, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch. Raises ``BackendError`` for dtypes, sizes or channels that no shipped kernel takes."""
    require_dtypes(op, extents, (op.x, op.out), ("float16",))
    batch, height, width, channels = extents.shape(op.out)
    if extents.shape(op.x) != (batch, 2 * height, 2 * width, channels):
        raise BackendError(f"cannot pool {op.x} of {extents.shape(op.x)} by 2x2 into {extents.shape(op.out)}")
    arguments = {
        "x_ptr": address(op.x),
        "out_ptr": address(op.out),
        "batch": batch,
        "out_height": height,
        "out_width": width,
        "channel_units": _units(op.x, channels),
    }
    return (Launch("average_pool_fp16", arguments),)


def mean_launches(op: Mean, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch. Raises ``BackendError`` for dtypes or channels that no shipped kernel takes."""
    require_dtypes(op, extents, (op.x, op.out), ("float16",))
    batch, *pixels, channels = extents.shape(op.x)
    arguments = {
        "x_ptr": address(op.x),
        "out_ptr": address(op.out),
        "batch": batch,
        "pixels": math.prod(pixels),
        "channel_units": _units(op.x, channels),
        "out_channels": extents.shape(op.out)[1],
    }
    return (Launch("mean_fp16", arguments),)


def _units(name: str, channels: int) -> int:
    if channels % UNIT:
        raise BackendError(f"no kernel averages {channels} channels of {name}: expected a multiple of {UNIT}")
    return channels // UNIT

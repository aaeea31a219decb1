"""Launches of LayerNorm by the kernel of ``saishiki.kernels.layer_norm``."""

from saishiki.runtime.backends.launches.launch import Address, Launch
from saishiki.runtime.backends.launches.operand import address_of, require_dtypes
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.extents import Extents, resolve
from saishiki.runtime.plan.ops import LayerNorm

BLOCKS = (512, 1024, 2048, 4096)
"""The shipped kernels, by the longest row that each takes."""
UNIT = 8
"""What channels and the distance between rows are multiples of: 16 bytes of fp16 at a time."""


def block_of(channels: int) -> int:
    """The kernel for rows of that length; raises ``BackendError`` where there is none."""
    for block in BLOCKS:
        if channels <= block:
            return block
    raise BackendError(f"no kernel normalises rows of {channels} numbers: expected at most {BLOCKS[-1]}")


def layer_norm_launches(op: LayerNorm, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch. Raises ``BackendError`` for dtypes, lengths or strides that no shipped kernel takes."""
    require_dtypes(op, extents, (op.x.buffer, op.out), ("float16",))
    vectors = {"weight": op.weight, "bias": op.bias}
    require_dtypes(op, extents, filter(None, vectors.values()), ("float32",))
    rows, channels = extents.strided_shape(op.x)
    stride, innermost = (resolve(stride, extents.sizes) for stride in op.x.strides)
    if innermost != 1 or channels % UNIT or stride % UNIT:
        raise BackendError(
            f"no kernel normalises rows of {channels} numbers of {op.x.buffer} at strides {stride}, {innermost}: "
            f"expected numbers side by side, and length and stride in multiples of {UNIT}; use another backend"
        )
    arguments = {
        "x_ptr": address_of(op.x, extents, address),
        "out_ptr": address(op.out),
        **{f"{name}_ptr": address(vector) if vector else 0 for name, vector in vectors.items()},
        **{f"has_{name}": int(vector is not None) for name, vector in vectors.items()},
        "rows": rows,
        "channel_units": channels // UNIT,
        "row_units": stride // UNIT,
        "eps": op.epsilon,
    }
    return (Launch(f"layer_norm_{block_of(channels)}_fp16", arguments),)

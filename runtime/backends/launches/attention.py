"""Launches of attention by the kernel of ``saishiki.kernels.attention``."""

from saishiki.runtime.backends.launches.launch import Address, Launch
from saishiki.runtime.backends.launches.operand import address_of, require_dtypes, units_of
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.extents import Extents
from saishiki.runtime.plan.ops import Attention

HEAD_DIMS = (32, 64, 80, 128, 512)
"""Of the shipped kernels; the last is that of a VAE."""
WIDE_FROM = 129
"""The least width of heads whose rows do not fit registers beside the sums."""
UNIT = 8
"""What strides are multiples of, in numbers: 16 bytes of fp16 at a time."""


def attention_launches(op: Attention, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch. Raises ``BackendError`` for heads, dtypes or strides that no shipped kernel takes."""
    require_dtypes(op, extents, (op.q.buffer, op.k.buffer, op.v.buffer, op.out), ("float16",))
    batch, heads, tokens, head_dim = extents.strided_shape(op.q)
    if head_dim not in HEAD_DIMS:
        raise BackendError(
            f"no kernel attends with heads of {head_dim}: expected {', '.join(map(str, HEAD_DIMS))}; use another "
            "backend"
        )
    operands = {"q": op.q, "k": op.k, "v": op.v}
    arguments = {
        **{f"{name}_ptr": address_of(part, extents, address) for name, part in operands.items()},
        "out_ptr": address(op.out),
        "scale": op.scale,
        "batch": batch,
        "heads": heads,
        "tokens": tokens,
        "keys": extents.strided_shape(op.k)[2],
    }
    for name, part in operands.items():
        for axis, units in zip(("batch", "head", "token"), units_of(part, extents, UNIT), strict=True):
            arguments[f"{name}_{axis}_units"] = units
    return (Launch(f"attention_d{head_dim}_fp16", arguments),)

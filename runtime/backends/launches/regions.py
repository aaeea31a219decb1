"""Launches of what is done by region, by the kernels of ``saishiki.kernels`` of the same names."""

from collections.abc import Iterable

from saishiki.runtime.backends.launches.launch import Address, Launch
from saishiki.runtime.backends.launches.operand import address_of, require_dtypes, units_of
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.extents import Extents, Strided, resolve
from saishiki.runtime.plan.ops import MaskedSplitCrossAttention, RegionOrder, SplitProjection

HEAD_DIMS = (32, 64, 80, 128)
"""Of the shipped kernels of attention by region."""
UNIT = 8
"""What strides are multiples of, in numbers: 16 bytes of fp16 at a time."""
WIDTH_UNIT = 16
"""What both widths of a projection are multiples of."""


def region_order_launches(op: RegionOrder, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch. Raises ``BackendError`` for dtypes and strides that no shipped kernel takes."""
    require_dtypes(op, extents, (op.mask.buffer,), ("float32",))
    require_dtypes(op, extents, (op.out,), ("int32",))
    batch, tokens = extents.strided_shape(op.mask)
    arguments = {
        "mask_ptr": _mask(op.mask, extents, address),
        "out_ptr": address(op.out),
        "selection": int(op.foreground_at_threshold),
        "threshold": op.threshold,
        "batch": batch,
        "tokens": tokens,
    }
    return (Launch("region_order", arguments),)


def masked_split_cross_attention_launches(
    op: MaskedSplitCrossAttention, extents: Extents, address: Address, sms: int
) -> tuple[Launch, ...]:
    """One launch. Raises ``BackendError`` for heads, dtypes or strides that no shipped kernel takes."""
    operands = {"q": op.q, "q_bg": op.background_q or op.q, "k": op.k, "v": op.v}
    _require_dtypes(op, extents, [*(part.buffer for part in operands.values()), op.out])
    require_dtypes(op, extents, filter(None, [op.merge_scale]), ("float32",))
    if op.background_q and not op.merge_scale:
        raise BackendError(
            "no kernel attends with queries of the background where nothing is merged: a split projection gives each "
            "token its own; use another backend"
        )
    batch, tokens, width = extents.strided_shape(op.q)
    head_dim = width // op.heads
    if head_dim not in HEAD_DIMS:
        raise BackendError(
            f"no kernel attends by region with heads of {head_dim}: expected {', '.join(map(str, HEAD_DIMS))}; use "
            "another backend"
        )
    arguments: dict[str, int | float] = {
        **{f"{name}_ptr": address_of(part, extents, address) for name, part in operands.items()},
        "kv_index_ptr": 0,
        **_regions(op, extents, address),
        "out_ptr": address(op.out),
        "fg_scale": op.foreground_scale,
        "bg_scale": op.background_scale,
        "merge_scale": address(op.merge_scale) if op.merge_scale else 0.0,
        "batch": batch,
        "tokens": tokens,
        "keys": extents.strided_shape(op.k)[1],
        "fg_tokens": resolve(op.foreground_tokens, extents.sizes),
        "heads": op.heads,
    }
    for name, part, other in (("q", "q", "q_bg"), ("kv", "k", "v")):
        batch_units, token_units = _common_units(operands[part], operands[other], extents)
        arguments |= {f"{name}_batch_units": batch_units, f"{name}_token_units": token_units}
    form = "merge_" if op.merge_scale else ""
    return (Launch(f"masked_split_cross_attention_{form}d{head_dim}_fp16", arguments),)


def split_projection_launches(op: SplitProjection, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch. Raises ``BackendError`` for widths, dtypes or strides that no shipped kernel takes."""
    _require_dtypes(op, extents, (op.x.buffer, op.foreground_weight, op.background_weight, op.out))
    batch, tokens, width = extents.strided_shape(op.x)
    out_width = extents.shape(op.foreground_weight)[0]
    if width % WIDTH_UNIT or out_width % WIDTH_UNIT:
        raise BackendError(
            f"no kernel projects {width} numbers of {op.x.buffer} to {out_width}: expected multiples of {WIDTH_UNIT}; "
            "use another backend"
        )
    batch_units, token_units = units_of(op.x, extents, UNIT)
    arguments = {
        "x_ptr": address_of(op.x, extents, address),
        "w_fg_ptr": address(op.foreground_weight),
        "w_bg_ptr": address(op.background_weight),
        **_regions(op, extents, address),
        "out_ptr": address(op.out),
        "rows": batch * tokens,
        "tokens": tokens,
        "width": width,
        "out_width": out_width,
        "x_batch_units": batch_units,
        "x_token_units": token_units,
    }
    return (Launch("split_projection_fp16", arguments),)


def _common_units(part: Strided, other: Strided, extents: Extents) -> tuple[int, ...]:
    """How far apart pictures and tokens are, in both operands."""
    units, others = (units_of(each, extents, UNIT) for each in (part, other))
    if units != others:
        raise BackendError(
            f"no kernel attends by region to {part.buffer} and {other.buffer} whose strides differ, "
            f"{part.strides} and {other.strides}; use another backend"
        )
    return units


def _require_dtypes(op: MaskedSplitCrossAttention | SplitProjection, extents: Extents, halves: Iterable[str]) -> None:
    require_dtypes(op, extents, halves, ("float16",))
    require_dtypes(op, extents, (op.mask.buffer,), ("float32",))
    require_dtypes(op, extents, (op.order,), ("int32",))


def _regions(
    op: MaskedSplitCrossAttention | SplitProjection, extents: Extents, address: Address
) -> dict[str, int | float]:
    return {
        "mask_ptr": _mask(op.mask, extents, address),
        "order_ptr": address(op.order),
        "selection": int(op.foreground_at_threshold),
        "threshold": op.threshold,
    }


def _mask(mask: Strided, extents: Extents, address: Address) -> int:
    """Where a mask begins."""
    (batch, tokens), strides = extents.strided_shape(mask), [resolve(stride, extents.sizes) for stride in mask.strides]
    if (batch > 1 and strides[0] != tokens) or (tokens > 1 and strides[1] != 1):
        raise BackendError(
            f"no kernel reads the mask {mask.buffer} at strides {tuple(strides)}: expected {batch} rows of {tokens} "
            "without gaps; use another backend"
        )
    return address_of(mask, extents, address)

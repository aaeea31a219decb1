"""Products of one tensor, whose results attention reads, as one product: q, k and v by one launch.

Their weights are stacked, and attention reads each part where it lies in the longer rows. A product stays by itself
where its weight is multiplied with other tensors than theirs are, for the weight would be stored twice; where somebody
else than attention reads its result; and where a residual is added to it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from msgspec.structs import replace

from saishiki.export.plan.dims import Dim
from saishiki.export.plan.draft import Draft
from saishiki.runtime.plan.extents import Strided
from saishiki.runtime.plan.ops import AnyOp, Attention, Matmul
from saishiki.runtime.signature import Array

UNIT = 8
"""Of the widths of products that are joined, so that each part begins at 16 bytes in fp16."""


@dataclass(frozen=True)
class _Part:
    """Columns of longer rows: those from ``place`` on, as many as ``width``, of ``longer``."""

    buffer: str
    place: int
    width: int
    longer: int


@dataclass(frozen=True)
class _Key:
    """What products have in common that can be joined."""

    x: Strided
    rows: tuple[str, ...]
    has_bias: bool


def join_products(draft: Draft) -> None:
    """Joins the products of a finished draft."""
    for products in _groups(draft):
        _join(draft, products)


def _groups(draft: Draft) -> list[list[Matmul]]:
    touching: dict[str, list[AnyOp]] = {}
    for op in draft.ops:
        for name in (*op.reads(), *op.writes()):
            touching.setdefault(name, []).append(op)
    products = [op for op in draft.ops if isinstance(op, Matmul)]
    keys: dict[AnyOp, _Key | None] = {op: _key(draft, op, touching[op.out.buffer]) for op in products}
    groups: dict[frozenset[_Key | None], dict[_Key | None, list[Matmul]]] = {}
    for op in products:
        # All that its weight is multiplied with, here and elsewhere: the same for all whose weights are stacked.
        used_with = frozenset(keys.get(other) for other in touching[op.weight])
        if None not in used_with:
            groups.setdefault(used_with, {}).setdefault(keys[op], []).append(op)
    found = [joined for by_key in groups.values() for joined in by_key.values()]
    return [joined for joined in found if len({op.weight for op in joined}) == len(joined) > 1]


def _key(draft: Draft, op: Matmul, touching: list[AnyOp]) -> _Key | None:
    """None for a product that cannot be joined with any.

    Args:
        touching: the operations that read or write its result, itself included.
    """
    out, width = op.out, draft.weights[op.weight].spec.shape[0]
    dims = draft.buffers[out.buffer].dims if out.buffer in draft.buffers else ()
    is_whole = (out.strides, out.offset, dims[-1:]) == ((str(width), "1"), "0", (str(width),))
    if op.residual or not is_whole or width % UNIT:
        return None
    part = _Part(out.buffer, 0, width, 2 * width)
    for other in touching:
        if other is not op and not (isinstance(other, Attention) and _reread(other, {out.buffer: part})):
            return None
    return _Key(op.x, dims[:-1], op.bias is not None)


def _join(draft: Draft, products: list[Matmul]) -> None:
    first = products[0]
    widths = [draft.weights[op.weight].spec.shape[0] for op in products]
    longer = sum(widths)
    rows = draft.buffers[first.out.buffer].dims[:-1]
    buffer = draft.new_buffer(f"{first.out.buffer}.joined", (*map(Dim.of, rows), Dim.of(longer)))
    weight = _stacked(draft, [op.weight for op in products])
    bias = _stacked(draft, [op.bias for op in products if op.bias]) if first.bias else None
    out = Strided(buffer, (first.out.shape[0], str(longer)), (str(longer), "1"))
    places = np.cumsum([0, *widths])
    parts = {
        op.out.buffer: _Part(buffer, int(place), width, longer)
        for op, place, width in zip(products, places, widths, strict=False)
    }
    kept = (Matmul(first.x, weight, out, bias) if op is first else op for op in draft.ops if op not in products[1:])
    draft.ops[:] = [_with_parts(op, parts) for op in kept]


def _stacked(draft: Draft, names: list[str]) -> str:
    """The name of weights behind one another: made of all their names, since a bias may be that of several layers."""
    stored = [draft.weights[name] for name in names]
    rows, rest = sum(each.spec.shape[0] for each in stored), stored[0].spec.shape[1:]
    return draft.store("+".join(names), partial(_concatenated, [each.read for each in stored]), shape=(rows, *rest))


def _concatenated(reads: Iterable[Callable[[], Array]]) -> Array:
    return np.concatenate([read() for read in reads])


def _with_parts(op: AnyOp, parts: Mapping[str, _Part]) -> AnyOp:
    if not isinstance(op, Attention):
        return op
    found = _reread(op, parts)
    assert found is not None, "a product is joined where everybody can read a part of it"
    return found


def _reread(op: Attention, parts: Mapping[str, _Part]) -> Attention | None:
    """Attention that reads some operands as parts of longer rows; None where strides cannot say where they lie."""
    operands = {}
    for name in ("q", "k", "v"):
        operand: Strided = getattr(op, name)
        found = _within(operand, parts[operand.buffer]) if operand.buffer in parts else operand
        if found is None:
            return None
        operands[name] = found
    return replace(op, **operands)


def _within(operand: Strided, part: _Part) -> Strided | None:
    """An operand of dense rows, where these are parts of longer ones.

    Its strides either lead from row to row, or stay within one. One with sizes in it leads to another row, unless a
    length within a row has sizes in it too.
    """
    offset, width = Dim.of(operand.offset), Dim.of(part.width)
    if not offset.is_number:
        return None
    row, inside = divmod(offset.number, part.width)
    strides = []
    for length, stride in zip(map(Dim.of, operand.shape), map(Dim.of, operand.strides), strict=True):
        if stride == Dim.of(0) or stride.is_multiple_of(width):
            strides.append(stride / width * part.longer)
        elif stride.is_number and length.is_number:
            inside += (length.number - 1) * stride.number
            strides.append(stride)
        else:
            return None
    if inside >= part.width:
        return None
    begin = row * part.longer + part.place + offset.number % part.width
    return Strided(part.buffer, operand.shape, tuple(map(str, strides)), str(begin))

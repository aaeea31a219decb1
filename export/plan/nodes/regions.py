"""Nodes of our own: attention and projection by region."""

from typing import TypedDict

import onnx_ir as ir

from saishiki.export.plan.dims import ONE, Dim
from saishiki.export.plan.draft import Draft, LoweringError
from saishiki.export.plan.operands import materialise, view_of_rows
from saishiki.export.plan.values import Tensor, Weight
from saishiki.export.plan.view import View, dense
from saishiki.runtime.plan.extents import Strided
from saishiki.runtime.plan.ops import MaskedSplitCrossAttention, RegionOrder, SplitProjection

INPUTS = ("q", "k", "v", "mask", "fg_tokens", "threshold", "fg_scale", "bg_scale", "reference_scale")
"""Of every form of attention by region, in order."""


def lower_masked_split_cross_attention(node: ir.Node, draft: Draft) -> None:
    """The forms with a hard selection; two queries and the merge share are inputs behind the others."""
    named = dict(zip(INPUTS, node.inputs, strict=False))
    merge = node.op_type.endswith("Merge")
    rest = node.inputs[len(INPUTS) :]
    queries = rest[-1] if rest else named["q"]
    q = _tokens(draft, draft.tensor(named["q"]))
    background_q = _tokens(draft, draft.tensor(queries)) if queries is not named["q"] else None
    out, made = draft.new_rows(str(node.outputs[0].name), q.shape)
    scale = _number(draft, named["reference_scale"])
    regions = _regions(draft, node, named["mask"], named["threshold"], q.shape)
    draft.emit(
        MaskedSplitCrossAttention(
            q=q.strided(),
            k=_tokens(draft, draft.tensor(named["k"])).strided(),
            v=_tokens(draft, draft.tensor(named["v"])).strided(),
            **regions,
            out=out,
            heads=node.attributes["heads"].as_int(),
            foreground_tokens=str(draft.lengths(named["fg_tokens"]).dims[0]),
            foreground_scale=_number(draft, named["fg_scale"]) * scale,
            background_scale=_number(draft, named["bg_scale"]) * scale,
            background_q=background_q.strided() if background_q else None,
            merge_scale=_interface_name(draft, rest[0]) if merge else None,
        )
    )
    draft.values[node.outputs[0]] = made


def lower_split_projection(node: ir.Node, draft: Draft) -> None:
    x = _tokens(draft, draft.tensor(node.inputs[0]))
    foreground, background = (draft.weight(value) for value in node.inputs[1:3])
    out, made = draft.new_rows(str(node.outputs[0].name), (*x.shape[:-1], Dim.of(foreground.shape[0])))
    regions = _regions(draft, node, node.inputs[3], node.inputs[4], x.shape)
    draft.emit(
        SplitProjection(
            x=x.strided(),
            foreground_weight=draft.weight_view(foreground).buffer,
            background_weight=draft.weight_view(background).buffer,
            **regions,
            out=out,
        )
    )
    draft.values[node.outputs[0]] = made


def _tokens(draft: Draft, value: Tensor) -> View:
    """(B, T, W) with W innermost and every axis in one run; copies where it is not."""
    view = materialise(draft, value)
    if all(len(axis) <= 1 for axis in view.axes) and view.axes[-1][0].stride == ONE and not view.is_cast:
        return view
    return view_of_rows(draft, view)


class _Regions(TypedDict):
    """What operations by region have in common."""

    mask: Strided
    order: str
    threshold: float
    foreground_at_threshold: bool


def _regions(
    draft: Draft, node: ir.Node, mask: ir.Value | None, threshold: ir.Value | None, tokens: tuple[Dim, ...]
) -> _Regions:
    """The mask of a node and how it decides, and the order of the tokens, which is emitted once for all that share it.

    Args:
        tokens: (B, T, ...).
    """
    view, limit = _mask(draft, mask, tokens), _number(draft, threshold)
    at_threshold = bool(node.attributes["foreground_at_threshold"].as_int())
    key = view, limit, at_threshold
    if key not in draft.orders:
        draft.orders[key] = draft.new_buffer(f"{view.buffer}.order", view.shape, "int32")
        draft.emit(RegionOrder(view.strided(), draft.orders[key], limit, at_threshold))
    return _Regions(mask=view.strided(), order=draft.orders[key], threshold=limit, foreground_at_threshold=at_threshold)


def _mask(draft: Draft, value: ir.Value | None, tokens: tuple[Dim, ...]) -> View:
    """(B, T) fp32, dense, as it is: the comparison must not be of rounded numbers."""
    view = materialise(draft, draft.tensor(value))
    if view.is_cast or view.dtype != "float32" or view.shape != tokens[:2]:
        raise LoweringError(f"takes the mask {view}, expected fp32 {[str(dim) for dim in tokens[:2]]}")
    is_dense = view.axes == dense(view.buffer, view.dtype, view.shape).axes
    return view if is_dense else view_of_rows(draft, view, "float32")


def _number(draft: Draft, value: ir.Value | None) -> float:
    found = draft.value(value)
    if not isinstance(found, Weight) or found.tensor.size != 1:
        raise LoweringError(f"expected {value and value.name} to be one constant number")
    return float(found.numbers().reshape(()))


def _interface_name(draft: Draft, value: ir.Value | None) -> str:
    view = materialise(draft, draft.tensor(value))
    if view.buffer not in {spec.name for spec in draft.signature.inputs} or view.is_cast:
        raise LoweringError(f"expected {view.buffer} to be an input of the module")
    return view.buffer

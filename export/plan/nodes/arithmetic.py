"""Nodes that compute number by number: folded into what is waiting where they can be."""

from dataclasses import replace

import onnx_ir as ir

from saishiki.export.plan.dims import ZERO, Dim
from saishiki.export.plan.draft import Draft, LoweringError
from saishiki.export.plan.nodes.shapes import (
    add_lengths,
    divide_lengths,
    is_waiting,
    multiply_lengths,
    subtract_lengths,
    uses_of,
)
from saishiki.export.plan.operands import materialise
from saishiki.export.plan.values import Comparison, Concat, Contraction, Map, Norm, Pending, Sum, Tensor, Weight
from saishiki.export.plan.view import View, dense
from saishiki.runtime.plan.ops import Function


def lower_add(node: ir.Node, draft: Draft) -> None:
    if add_lengths(node, draft):
        return
    left, right = node.inputs
    output = node.outputs[0]
    for term, other in ((right, left), (left, right)):
        if folded := _added_to(draft, draft.value(term), other, output):
            draft.values[output] = folded
            return
    terms = tuple(draft.tensor(value) for value in node.inputs)
    if joined := _sum_of_parts(draft, terms, output) or _modulated(draft, terms, output):
        draft.values[output] = joined
    elif terms[0].shape == terms[1].shape:
        draft.values[output] = Sum(str(output.name), terms[0].shape, terms[0].dtype, uses_of(output), *terms)
    else:
        draft.values[output] = _map("add", terms, output)


def _added_to(draft: Draft, term: object, other: ir.Value | None, output: ir.Value) -> Contraction | None:
    """A contraction that takes the other term along, or None where it cannot."""
    if not isinstance(term, Contraction) or not is_waiting(term, draft):
        return None
    added = draft.value(other)
    named = replace(term, name=str(output.name), uses=uses_of(output))
    if isinstance(added, Weight):
        return replace(named, bias=added) if _is_bias(term, added) else None
    if not isinstance(added, View | Pending):
        return None
    if term.vector is None and term.kind == "convolution" and (vector := _vector_of_step(draft, term, added)):
        return replace(named, vector=vector)
    if term.residual is None and added.shape == term.shape and added.dtype == term.dtype:
        return replace(named, residual=added)
    return None


def _sum_of_parts(draft: Draft, terms: tuple[Tensor, ...], output: ir.Value) -> Concat | None:
    """The sum with a concat of pictures as the concat of sums, of which each can be folded by itself."""
    for concat, other in (terms, terms[::-1]):
        if not isinstance(concat, Concat) or not is_waiting(concat, draft) or concat.axis != 0:
            continue
        if other.shape != concat.shape:
            return None
        view, start, parts = materialise(draft, other), ZERO, []
        if len(view.axes[0]) > 1:
            return None
        for part in concat.parts:
            added = view.slice(0, start, part.shape[0])
            parts.append(_sum(draft, part, added))
            start = start + part.shape[0]
        return replace(concat, name=str(output.name), uses=uses_of(output), parts=tuple(parts))
    return None


def _sum(draft: Draft, part: Tensor, added: View) -> Tensor:
    name = f"{added.buffer}.sum"
    if isinstance(part, Contraction) and is_waiting(part, draft) and part.kind == "matmul" and part.residual is None:
        return replace(part, residual=added)
    return Sum(name, part.shape, part.dtype, 1, part, added)


def _modulated(draft: Draft, terms: tuple[Tensor, ...], output: ir.Value) -> Map | None:
    """``x * (1 + scale) + shift`` in one, where the graph has it in three."""
    for product, shift in (terms, terms[::-1]):
        if not isinstance(product, Map) or not is_waiting(product, draft) or product.function != "mul":
            continue
        for x, factor in (product.operands, product.operands[::-1]):
            if (scale := _scale_above_one(draft, factor)) is not None and x.shape == product.shape:
                return _map("modulate", (x, scale, shift), output)
    return None


def _scale_above_one(draft: Draft, factor: Tensor) -> Tensor | None:
    """What one is added to."""
    if not isinstance(factor, Map) or not is_waiting(factor, draft) or factor.function != "add":
        return None
    for scale, one in (factor.operands, factor.operands[::-1]):
        if isinstance(one, View) and draft.scalars.get(one.buffer) == 1.0:
            return scale
    return None


def _is_bias(term: Contraction, added: Weight) -> bool:
    return term.kind == "matmul" and term.bias is None and added.shape == (term.shape[-1].number,)


def _vector_of_step(draft: Draft, term: Contraction, added: Tensor) -> tuple[str, int] | None:
    """The input and the offset of what is added to every pixel alike, where it is a part of an fp32 (B, P) input."""
    inputs = {spec.name: spec for spec in draft.signature.inputs}
    if not isinstance(added, View) or added.buffer not in inputs or term.bias is None or not added.offset.is_number:
        return None
    spec, offset, channels = inputs[added.buffer], added.offset.number, term.shape[1]
    if len(spec.dims) != 2 or not spec.dims[1].isdigit() or offset % 8 or channels.number % 8:
        return None
    row = dense(spec.name, spec.dtype, tuple(map(Dim.of, spec.dims))).cast(added.dtype)
    expected = row.slice(1, added.offset, channels).insert(2).insert(3)
    # The rows may be repeated for the slots of guidance.
    fits = added == expected or (
        len(added.axes[0]) == 2 and replace(added, axes=(added.axes[0][1:], *added.axes[1:])) == expected
    )
    return (spec.name, offset) if fits and draft.claim((spec.name, offset)) else None


def lower_mul(node: ir.Node, draft: Draft) -> None:
    if multiply_lengths(node, draft):
        return
    left, right = (draft.value(value) for value in node.inputs)
    output = node.outputs[0]
    for x, gate in ((left, right), (right, left)):
        if isinstance(gate, Map) and gate not in draft.made and gate.uses == 1:
            if gate.function == "sigmoid" and gate.operands[0] is x:
                draft.values[output] = _with_silu(draft, x, output)
                return
            if gate.function == "gelu" and isinstance(x, View | Pending):
                draft.values[output] = _map("gated_gelu", (x, gate.operands[0]), output)
                return
    draft.values[output] = _map("mul", tuple(draft.tensor(value) for value in node.inputs), output)


def _with_silu(draft: Draft, x: object, output: ir.Value) -> Pending:
    # The norm's two readers are the sigmoid and the product.
    if isinstance(x, Norm) and x not in draft.made and x.uses == 2:
        return replace(x, name=str(output.name), uses=uses_of(output), silu=True)
    assert isinstance(x, View | Pending)
    return _map("silu", (x,), output)


def lower_sub(node: ir.Node, draft: Draft) -> None:
    if not subtract_lengths(node, draft):
        draft.values[node.outputs[0]] = _map("sub", tuple(map(draft.tensor, node.inputs)), node.outputs[0])


def lower_div(node: ir.Node, draft: Draft) -> None:
    if not divide_lengths(node, draft):
        draft.values[node.outputs[0]] = _map("div", tuple(map(draft.tensor, node.inputs)), node.outputs[0])


def lower_sigmoid(node: ir.Node, draft: Draft) -> None:
    _lower_function("sigmoid", node, draft)


def lower_gelu(node: ir.Node, draft: Draft) -> None:
    if node.attributes.get_string("approximate", "none") != "none":
        raise LoweringError("is the approximate gelu; only the exact one is lowered")
    _lower_function("gelu", node, draft)


def lower_clip(node: ir.Node, draft: Draft) -> None:
    if len(node.inputs) != 3 or None in node.inputs:
        raise LoweringError("clips on one side alone; both bounds must be there")
    draft.values[node.outputs[0]] = _map("clip", tuple(map(draft.tensor, node.inputs)), node.outputs[0])


def lower_greater(node: ir.Node, draft: Draft) -> None:
    x, threshold = map(draft.tensor, node.inputs)
    output = node.outputs[0]
    shape = _broadcast([x.shape, threshold.shape])
    draft.values[output] = Comparison(str(output.name), shape, "bool", uses_of(output), x, threshold)


def lower_where(node: ir.Node, draft: Draft) -> None:
    condition = draft.value(node.inputs[0])
    if not isinstance(condition, Comparison):
        raise LoweringError("selects by something else than a comparison; only x > threshold is lowered")
    above, other = map(draft.tensor, node.inputs[1:])
    operands = (condition.x, condition.threshold, above, other)
    output = node.outputs[0]
    shape = _broadcast([operand.shape for operand in operands])
    draft.values[output] = Map(str(output.name), shape, above.dtype, uses_of(output), "select_above", operands)


def lower_sin(node: ir.Node, draft: Draft) -> None:
    _lower_function("sin", node, draft)


def lower_cos(node: ir.Node, draft: Draft) -> None:
    _lower_function("cos", node, draft)


def _lower_function(function: Function, node: ir.Node, draft: Draft) -> None:
    draft.values[node.outputs[0]] = _map(function, (draft.tensor(node.inputs[0]),), node.outputs[0])


def _map(function: Function, operands: tuple[Tensor, ...], output: ir.Value) -> Map:
    shape = _broadcast([operand.shape for operand in operands])
    return Map(str(output.name), shape, operands[0].dtype, uses_of(output), function, operands)


def _broadcast(shapes: list[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    rank = max(map(len, shapes))
    padded = [(Dim.of(1),) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((dim for dim in dims if dim != Dim.of(1)), dims[0]) for dims in zip(*padded, strict=True))

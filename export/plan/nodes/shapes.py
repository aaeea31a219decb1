"""Nodes that move nothing: what they do to a tensor's shape, and to lengths."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from saishiki.export.plan.dims import ONE, ZERO, Dim, product
from saishiki.export.plan.draft import Draft, LoweringError
from saishiki.export.plan.operands import materialise, view_of_rows
from saishiki.export.plan.values import Cast, Concat, Lengths, Pending, Tensor, Weight
from saishiki.export.plan.view import View
from saishiki.runtime.signature import Array

FAR = 2**31 - 1
"""A slice that ends here or later ends with its axis."""
DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}


def lower_shape(node: ir.Node, draft: Draft) -> None:
    shape = draft.tensor(node.inputs[0]).shape
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    dims = shape[start:end]
    draft.values[node.outputs[0]] = Lengths(dims, (len(dims),))


def lower_cast(node: ir.Node, draft: Draft) -> None:
    value = draft.value(node.inputs[0])
    dtype = DTYPES.get(ir.DataType(node.attributes["to"].as_int()))
    if isinstance(value, Lengths):
        draft.values[node.outputs[0]] = value
        return
    if dtype is None:
        raise LoweringError(f"casts to {ir.DataType(node.attributes['to'].as_int()).name}")
    draft.values[node.outputs[0]] = _cast(draft.tensor(node.inputs[0]), dtype, node.outputs[0], draft)


def _cast(value: Tensor, dtype: str, output: ir.Value, draft: Draft) -> Tensor:
    if isinstance(value, View) or value.dtype == dtype:
        return value.cast(dtype) if isinstance(value, View) else value
    name, uses = str(output.name), uses_of(output)
    if isinstance(value, Concat) and value not in draft.made:
        parts = tuple(_cast(part, dtype, output, draft) for part in value.parts)
        return Concat(name, value.shape, dtype, uses, parts, value.axis)
    return Cast(name, value.shape, dtype, uses, value)


def lower_reshape(node: ir.Node, draft: Draft) -> None:
    target = draft.lengths(node.inputs[1]).dims
    value = draft.value(node.inputs[0])
    if isinstance(value, Lengths):
        numbers = _numbers(value).reshape([dim.number for dim in target])
        draft.values[node.outputs[0]] = _lengths(numbers)
        return
    view = materialise(draft, draft.tensor(node.inputs[0]))
    keep = not node.attributes.get_int("allowzero", 0)
    wanted = [view.shape[i] if dim == ZERO and keep else dim for i, dim in enumerate(target)]
    draft.values[node.outputs[0]] = _reshaped(draft, view, _without_free(wanted, view.shape))


def _without_free(wanted: list[Dim], shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The dims with what -1 stands for."""
    known = product(dim for dim in wanted if dim != Dim.of(-1))
    return tuple(product(shape) / known if dim == Dim.of(-1) else dim for dim in wanted)


def _reshaped(draft: Draft, view: View, dims: tuple[Dim, ...]) -> View:
    try:
        return view.reshape(dims)
    except ValueError:
        return view_of_rows(draft, view).reshape(dims)


def lower_transpose(node: ir.Node, draft: Draft) -> None:
    view = materialise(draft, draft.tensor(node.inputs[0]))
    order = tuple(node.attributes.get_ints("perm", range(len(view.axes))[::-1]))
    draft.values[node.outputs[0]] = view.transpose(order)


def lower_unsqueeze(node: ir.Node, draft: Draft) -> None:
    value = draft.value(node.inputs[0])
    axes = [dim.number for dim in draft.lengths(node.inputs[1]).dims]
    if isinstance(value, Lengths):
        draft.values[node.outputs[0]] = Lengths(value.dims, (len(value.dims),))
        return
    view = materialise(draft, draft.tensor(node.inputs[0]))
    rank = len(view.axes) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        view = view.insert(axis)
    draft.values[node.outputs[0]] = view


def lower_squeeze(node: ir.Node, draft: Draft) -> None:
    value = draft.value(node.inputs[0])
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if isinstance(value, Lengths):
        draft.values[node.outputs[0]] = Lengths(value.dims, () if len(value.dims) == 1 else value.shape)
        return
    view = materialise(draft, draft.tensor(node.inputs[0]))
    rank = len(view.axes)
    axes = (
        [axis for axis in range(rank) if view.shape[axis] == ONE]
        if given is None
        else [dim.number % rank for dim in draft.lengths(given).dims]
    )
    for axis in sorted(axes, reverse=True):
        view = view.remove(axis)
    draft.values[node.outputs[0]] = view


def lower_slice(node: ir.Node, draft: Draft) -> None:
    starts, ends = (draft.lengths(value).dims for value in node.inputs[1:3])
    rest = [draft.lengths(value).dims for value in node.inputs[3:] if value is not None]
    steps = rest[1] if len(rest) > 1 else (ONE,) * len(starts)
    if any(step != ONE for step in steps):
        raise LoweringError(f"takes every {max(step.number for step in steps)}th element; only steps of 1 are lowered")
    value = draft.value(node.inputs[0])
    if isinstance(value, Lengths):
        dims = value.dims[slice(starts[0].number, ends[0].number)]
        draft.values[node.outputs[0]] = Lengths(dims, (len(dims),))
        return
    view = materialise(draft, draft.tensor(node.inputs[0]))
    axes = rest[0] if rest else tuple(map(Dim.of, range(len(starts))))
    for axis, start, end in zip(axes, starts, ends, strict=True):
        view = _sliced(view, axis.number % len(view.axes), start, end)
    draft.values[node.outputs[0]] = view


def _sliced(view: View, axis: int, start: Dim, end: Dim) -> View:
    length = view.shape[axis]
    first, last = (length + at if at.is_number and at.number < 0 else at for at in (start, end))
    beyond = last.is_number and (last.number >= FAR if not length.is_number else last.number > length.number)
    return view.slice(axis, first, (length if beyond else last) - first)


def lower_split(node: ir.Node, draft: Draft) -> None:
    view = materialise(draft, draft.tensor(node.inputs[0]))
    axis = node.attributes.get_int("axis", 0) % len(view.axes)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        lengths = draft.lengths(node.inputs[1]).dims
    else:
        lengths = (view.shape[axis] / len(node.outputs),) * len(node.outputs)
    start = ZERO
    for output, length in zip(node.outputs, lengths, strict=True):
        draft.values[output] = view.slice(axis, start, length)
        start = start + length


def lower_concat(node: ir.Node, draft: Draft) -> None:
    axis = node.attributes.get_int("axis", 0)
    values = [draft.value(value) for value in node.inputs]
    output = node.outputs[0]
    if all(isinstance(value, Lengths) for value in values):
        dims = tuple(dim for value in values if isinstance(value, Lengths) for dim in value.dims)
        draft.values[output] = Lengths(dims, (len(dims),))
        return
    parts = tuple(draft.tensor(value) for value in node.inputs)
    axis %= len(parts[0].shape)
    total = ZERO
    for part in parts:
        total = total + part.shape[axis]
    shape = (*parts[0].shape[:axis], total, *parts[0].shape[axis + 1 :])
    draft.values[output] = Concat(str(output.name), shape, parts[0].dtype, uses_of(output), parts, axis)


def lower_gather(node: ir.Node, draft: Draft) -> None:
    index = draft.lengths(node.inputs[1])
    axis = node.attributes.get_int("axis", 0)
    value = draft.value(node.inputs[0])
    if isinstance(value, Lengths):
        numbers = _numbers(value)[np.array([dim.number for dim in index.dims]).reshape(index.shape)]
        draft.values[node.outputs[0]] = _lengths(np.asarray(numbers, object))
        return
    if index.shape != ():
        raise LoweringError("gathers more than one element; only a single constant index is lowered")
    view = materialise(draft, draft.tensor(node.inputs[0]))
    axis %= len(view.axes)
    at = index.dims[0] if index.dims[0].number >= 0 else view.shape[axis] + index.dims[0]
    draft.values[node.outputs[0]] = view.slice(axis, at, ONE).remove(axis)


def lower_tile(node: ir.Node, draft: Draft) -> None:
    view = materialise(draft, draft.tensor(node.inputs[0]))
    for axis, times in enumerate(draft.lengths(node.inputs[1]).dims):
        view = view.tile(axis, times.number)
    draft.values[node.outputs[0]] = view


def lower_constant_of_shape(node: ir.Node, draft: Draft) -> None:
    shape = tuple(dim.number for dim in draft.lengths(node.inputs[0]).dims)
    fill = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
    tensor = ir.tensor(np.full(shape, fill[0], fill.dtype))
    draft.values[node.outputs[0]] = Weight(str(node.outputs[0].name), tensor)


def lower_expand(node: ir.Node, draft: Draft) -> None:
    view = materialise(draft, draft.tensor(node.inputs[0]))
    target = draft.lengths(node.inputs[1]).dims
    own = (ONE,) * (len(target) - len(view.shape)) + view.shape
    dims = tuple(mine if wanted == ONE else wanted for mine, wanted in zip(own, target, strict=True))
    draft.values[node.outputs[0]] = view.expand(dims)


def lower_pad(node: ir.Node, draft: Draft) -> None:
    pads = [dim.number for dim in draft.lengths(node.inputs[1]).dims]
    if any(pads):
        raise LoweringError(f"pads by {pads}; only padding inside a convolution is lowered")
    draft.values[node.outputs[0]] = draft.value(node.inputs[0])


def _arithmetic(operation: Callable[[Dim, Dim], Dim]) -> Callable[[ir.Node, Draft], bool]:
    def lower(node: ir.Node, draft: Draft) -> bool:
        operands = [draft.value(value) for value in node.inputs]
        numbers = [_numbers(value) for value in operands if isinstance(value, Lengths)]
        if len(numbers) < len(operands):
            return False
        left, right = numbers
        draft.values[node.outputs[0]] = _lengths(np.asarray(np.frompyfunc(operation, 2, 1)(left, right), object))
        return True

    return lower


add_lengths = _arithmetic(Dim.__add__)
multiply_lengths = _arithmetic(Dim.__mul__)
subtract_lengths = _arithmetic(Dim.__sub__)
divide_lengths = _arithmetic(Dim.__floordiv__)


def _numbers(lengths: Lengths) -> Array:
    numbers: Array = np.empty(len(lengths.dims), object)
    numbers[:] = lengths.dims
    return numbers.reshape(lengths.shape)


def _lengths(numbers: Array) -> Lengths:
    return Lengths(tuple(numbers.reshape(-1)), numbers.shape)


def uses_of(value: ir.Value) -> int:
    """How many nodes and outputs of the graph read a tensor."""
    return len(value.uses()) + value.is_graph_output()


def is_waiting(value: object, draft: Draft) -> bool:
    """Whether a value has not been computed, and one reader alone is waiting for it."""
    return isinstance(value, Pending) and value.uses == 1 and value not in draft.made

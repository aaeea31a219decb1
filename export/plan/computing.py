"""From a value that waits to a buffer: which operations compute it, with everything that can be folded into them."""

from collections.abc import Callable
from dataclasses import replace
from functools import singledispatch

import numpy as np

from saishiki.export.plan.dims import ZERO, Dim, product
from saishiki.export.plan.draft import Draft, LoweringError, images_view, padded_channels, padded_images
from saishiki.export.plan.values import Cast, Concat, Contraction, Map, Norm, Pending, Sum, Tensor, Weight
from saishiki.export.plan.view import Run, View, dense
from saishiki.runtime.plan.ops import Convolution, Copy, Matmul, NormApply, NormInput, NormStatistics, Pointwise
from saishiki.runtime.signature import Array

BORDER_CHANNELS = 16
"""A first convolution reads fp32 images as they are where they have at most so many channels."""


def materialise(draft: Draft, value: Tensor) -> View:
    """A tensor as a view of a buffer; computes it where that has not been done."""
    if isinstance(value, View):
        return value
    if value not in draft.made:
        draft.made[value] = _compute(value, draft)
    return draft.made[value]


def write(draft: Draft, value: Tensor, out: View) -> None:
    """Computes a tensor into a part of a buffer or into the interface; copies it there where that is not possible."""
    if isinstance(value, Cast) and value not in draft.made:
        value = value.x
    if not isinstance(value, View) and value not in draft.made and value.uses <= 1:
        if isinstance(value, Contraction) and value.kind == "matmul" and _as_rows(out):
            _matmul(draft, value, out)
            return
        if isinstance(value, Sum | Map):
            _pointwise(draft, value, out)
            return
        if isinstance(value, Concat):
            _write_parts(draft, value, out)
            return
    copy(draft, (materialise(draft, value),), 0, out)


def _write_parts(draft: Draft, value: Concat, out: View) -> None:
    if all(isinstance(part, View) or part in draft.made for part in value.parts):
        copy(draft, tuple(materialise(draft, part) for part in value.parts), value.axis, out)
        return
    start = ZERO
    for part in value.parts:
        length = part.shape[value.axis]
        write(draft, part, out.slice(value.axis, start, length))
        start = start + length


def images(draft: Draft, value: Tensor) -> str:
    """The buffer (B, H, W, padded C) of images (B, C, H, W); copies where the tensor lies otherwise."""
    view = materialise(draft, value)
    if view == images_view(view.buffer, view.dtype, view.shape) and _holds(draft, view, padded_images(view.shape)):
        draft.redeclare(view.buffer, padded_images(view.shape))
        return view.buffer

    def copied(name: str) -> View:
        _, made = draft.new_images(name, view.shape)
        copy(draft, (view,), 1, _with_padding(made, padded_channels(view.shape[1].number)))
        return made

    return _copied_once(draft, "images", view, copied).buffer


def rows(draft: Draft, value: Tensor) -> View:
    """A tensor (..., K) as (rows, K) with K innermost; copies where its rows are not equally far apart."""
    view = materialise(draft, value)
    if not view.is_cast and (flat := _as_rows(view)):
        return flat
    return view_of_rows(draft, view).reshape((product(view.shape[:-1]), view.shape[-1]))


def view_of_rows(draft: Draft, view: View, dtype: str | None = None) -> View:
    """A copy of a tensor in the order of its dims, made once for all that need it; in the plan's dtype or another."""

    def copied(name: str) -> View:
        _, made = draft.new_rows(name, view.shape, dtype)
        copy(draft, (view,), 0, made)
        return made

    return _copied_once(draft, f"{dtype or ''}rows", view, copied)


def heads(draft: Draft, view: View) -> View:
    """A copy of (B, heads, T, D) that lies as (B, T, heads, D), made once for all that need it."""

    def copied(name: str) -> View:
        batch, count, tokens, width = view.shape
        _, made = draft.new_rows(name, (batch, tokens, count, width))
        ordered = made.transpose((0, 2, 1, 3))
        copy(draft, (view,), 0, ordered)
        return ordered

    return _copied_once(draft, "heads", view, copied)


def _copied_once(draft: Draft, order: str, view: View, copied: Callable[[str], View]) -> View:
    key = order, view
    if key not in draft.copies:
        draft.copies[key] = copied(f"{view.buffer}.{order}")
    return draft.copies[key]


def _as_rows(view: View) -> View | None:
    """A tensor (..., K) as (rows, K), or None where K is not innermost or the rows are not equally far apart."""
    try:
        flat = view.reshape((product(view.shape[:-1]), view.shape[-1]))
    except ValueError:
        return None
    return flat if len(flat.axes[0]) <= 1 and _innermost(flat) else None


def _innermost(view: View) -> bool:
    return all(run.stride == Dim.of(1) for run in view.axes[-1])


def _holds(draft: Draft, view: View, dims: tuple[Dim, ...]) -> bool:
    """Whether the view's buffer is as long as dims are, so that its name alone says what is meant."""
    buffer = draft.buffers.get(view.buffer)
    return buffer is not None and not view.is_cast and product(map(Dim.of, buffer.dims)) == product(dims)


def copy(draft: Draft, parts: tuple[View, ...], axis: int, out: View) -> None:
    """Copies parts behind one another along an axis into a view."""
    if any(len(part.axes[axis]) > 1 for part in (*parts, out)) and len(parts) > 1:
        raise LoweringError(f"cannot copy {len(parts)} parts along an axis of several runs")
    is_whole = len(parts) == 1 and parts[0].shape == out.shape
    together = _aligned((*parts, out), along=-1 if is_whole else axis)
    at = sum(max(1, len(runs)) for runs in together[-1].axes[:axis])
    strided = [view.strided() for view in together]
    draft.emit(Copy(tuple(strided[:-1]), at, strided[-1]))


def _aligned(views: tuple[View, ...], along: int) -> tuple[View, ...]:
    """The views with every axis but one in the same runs; -1 leaves none out."""
    for axis in range(len(views[0].axes)):
        lengths = tuple(run.length for run in max((view.axes[axis] for view in views), key=len))
        if len(lengths) > 1 and axis != along:
            views = tuple(_split(view, axis, lengths) for view in views)
    return views


def _split(view: View, axis: int, lengths: tuple[Dim, ...]) -> View:
    """The view with an axis in runs of these lengths."""
    runs = View(view.buffer, view.dtype, view.stored, (view.axes[axis],)).reshape(lengths).axes
    joined: tuple[Run, ...] = tuple(run for part in runs for run in part)
    return replace(view, axes=(*view.axes[:axis], joined, *view.axes[axis + 1 :]))


def _with_padding(view: View, channels: int) -> View:
    return replace(view, axes=(view.axes[0], (Run(Dim.of(channels), Dim.of(1)),), *view.axes[2:]))


@singledispatch
def _compute(value: Pending, draft: Draft) -> View:
    raise AssertionError(f"nothing computes {value}")


@_compute.register
def _(value: Concat, draft: Draft) -> View:
    buffer, view = _new_tensor(draft, value)
    if value.axis == 1:
        copy(draft, tuple(materialise(draft, part) for part in value.parts), 1, _whole_images(draft, buffer, view))
    else:
        _write_parts(draft, value, view)
    return view


def _whole_images(draft: Draft, buffer: str, view: View) -> View:
    """The view with the padding of its channels, which a copy fills with zeros."""
    dims = draft.buffers[buffer].dims
    padded = len(view.shape) == 4 and dims == tuple(map(str, padded_images(view.shape)))
    return _with_padding(view, int(dims[-1])) if padded else view


def _new_tensor(draft: Draft, value: Pending) -> tuple[str, View]:
    """A buffer for a tensor: pictures with their channels innermost, all else in the order of its dims."""
    is_images = len(value.shape) == 4 and value.shape[1].is_number
    return draft.new_images(value.name, value.shape) if is_images else draft.new_rows(value.name, value.shape)


@_compute.register
def _(value: Sum, draft: Draft) -> View:
    return _pointwise(draft, value, None)


@_compute.register
def _(value: Map, draft: Draft) -> View:
    return _pointwise(draft, value, None)


def _pointwise(draft: Draft, value: Sum | Map, out: View | None) -> View:
    """Computes in the order in which the result lies: that of the first operand of full size, where it is dense."""
    function, operands = (
        ("add", (value.left, value.right)) if isinstance(value, Sum) else (value.function, value.operands)
    )
    views = [materialise(draft, operand).expand(value.shape) for operand in operands]
    out = _like(draft, value, views) if out is None else out
    together = _aligned((*views, out), along=-1)
    order = _order_of(together[-1])
    *inputs, result = (view.transpose(order).strided() for view in together)
    draft.emit(Pointwise(function=function, inputs=tuple(inputs), out=result))
    return out


def _like(draft: Draft, value: Pending, views: list[View]) -> View:
    """A new buffer in the order of the first operand that is dense, else in the order of the dims."""
    for view in views:
        order = _order_of(view)
        dims = tuple(view.shape[axis] for axis in order)
        ordered = view.transpose(order)
        if dense(view.buffer, view.dtype, dims).axes == ordered.axes:
            _, made = draft.new_rows(value.name, dims)
            return made.transpose(tuple(int(axis) for axis in np.argsort(order)))
    return draft.new_rows(value.name, value.shape)[1]


def _order_of(view: View) -> tuple[int, ...]:
    """Its axes from the outermost to the innermost in memory, those of length 1 or repeated in front of all."""

    def position(axis: int) -> int:
        return max((_rank(view, run) for run in view.axes[axis]), default=len(view.axes) + 1)

    return tuple(sorted(range(len(view.axes)), key=lambda axis: -position(axis)))


def _rank(view: View, run: Run) -> int:
    """How many axes of the view lie within one step of a run."""
    others = [other for axis in view.axes for other in axis if other is not run]
    return sum(_lies_within(other, run) for other in others)


def _lies_within(inner: Run, outer: Run) -> bool:
    return outer.stride.is_multiple_of(inner.stride) if inner.stride != ZERO and outer.stride != ZERO else False


@_compute.register
def _(value: Norm, draft: Draft) -> View:
    u, folded = _norm_input(draft, value.x)
    buffer_of_u = draft.buffers[u.x].dims
    spatial = draft.buffers[u.concat].dims[1:-1] if u.concat else buffer_of_u[1:-1]
    channels = value.weight.shape[0]
    dims = tuple(Dim.of(dim) for dim in (buffer_of_u[0], *spatial, str(channels)))
    if channels % 8:
        raise LoweringError(f"{value.name} normalises {channels} channels, expected a multiple of 8")
    statistics = draft.new_buffer(f"{value.name}.statistics", (dims[0], Dim.of(value.groups), Dim.of(2)), "float32")
    out = draft.new_buffer(value.name, dims)
    draft.emit(NormStatistics(u, statistics, value.groups, value.epsilon))
    dense_u = None
    if folded is not None and folded.uses > 1:
        dense_u = draft.new_buffer(folded.name, dims)
        draft.made[folded] = _channels_first(dense_u, draft.dtype, dims).reshape(folded.shape)
    weight, bias = (store_fp32(draft, tensor) for tensor in (value.weight, value.bias))
    draft.emit(NormApply(u, statistics, weight, bias, out, value.silu, dense_u))
    return _channels_first(out, draft.dtype, dims).reshape(value.shape)


def _channels_first(buffer: str, dtype: str, dims: tuple[Dim, ...]) -> View:
    last = len(dims) - 1
    return dense(buffer, dtype, dims).transpose((0, last, *range(1, last)))


def store_fp32(draft: Draft, weight: Weight) -> str:
    """A vector of the graph as the norms want it."""
    return draft.store(
        f"{weight.name}.fp32", lambda: weight.tensor.numpy().astype(np.float32), shape=weight.shape, dtype="float32"
    )


def _norm_input(draft: Draft, x: Tensor) -> tuple[NormInput, Pending | None]:
    """What a norm reads, and the tensor that is never written for it, if it is put together on the way in."""
    if isinstance(x, Concat) and x not in draft.made and x.axis == 1 and len(x.parts) == 2:
        first, second = (materialise(draft, part) for part in x.parts)
        small = _without_upsampling(first)
        own, upsample = (first, False) if small is None else (small, True)
        if all(view.shape[1].number % 8 == 0 for view in (own, second)):
            return NormInput(images(draft, own), images(draft, second), upsample), x
    if isinstance(x, Sum) and x not in draft.made and len(x.shape) == 4:
        left, right = images(draft, x.left), images(draft, x.right)
        return NormInput(left, residual=right), x
    return NormInput(_channels_last(draft, x)), None


def _without_upsampling(view: View) -> View | None:
    """Images whose pixels are each read twice along both axes, as the images they are of."""
    if len(view.axes) != 4 or any(len(axis) != 2 or axis[1].stride != ZERO for axis in view.axes[2:]):
        return None
    if any(axis[1].length != Dim.of(2) for axis in view.axes[2:]):
        return None
    return replace(view, axes=(*view.axes[:2], *((axis[0],) for axis in view.axes[2:])))


def _channels_last(draft: Draft, x: Tensor) -> str:
    """The buffer (B, ..., C) of a tensor (B, C, ...)."""
    view = materialise(draft, x)
    batch, channels, *pixels = view.shape
    flat = view.transpose((0, *range(2, len(view.shape)), 1))
    whole = dense(view.buffer, view.dtype, (batch, product(pixels), channels))
    try:
        if flat.reshape((batch, product(pixels), channels)) == whole and _holds(draft, view, view.shape):
            return view.buffer
    except ValueError:
        pass
    if len(view.shape) == 4:
        return images(draft, view)
    buffer, copied = draft.new_rows(f"{view.buffer}.rows", (batch, *pixels, channels))
    copy(draft, (flat,), 0, copied)
    return buffer


@_compute.register
def _(value: Cast, draft: Draft) -> View:
    return materialise(draft, value.x).cast(value.dtype)


@_compute.register
def _(value: Contraction, draft: Draft) -> View:
    if value.kind == "convolution":
        return convolution(draft, value)
    return _matmul(draft, value, None)


def convolution(draft: Draft, value: Contraction, image: str | None = None) -> View:
    """Computes a convolution into a buffer, or into an fp32 image of the interface."""
    sources = border_images(draft, value.x)
    x = sources or (images(draft, value.x),)
    residual = images(draft, value.residual) if value.residual is not None else None
    filters, channels = value.weight.shape[:2]
    padded = padded_channels(filters), BORDER_CHANNELS if sources else padded_channels(channels)
    bias, offset = _bias(draft, value, padded[0])
    weight = draft.store(
        f"{value.weight.name}.krsc", lambda: _krsc(value.weight, padded), shape=_krsc_shape(value.weight, padded)
    )
    out = image or draft.new_buffer(value.name, padded_images(value.shape))
    draft.emit(
        Convolution(
            x, weight, bias, out, value.stride, value.padding, residual, offset, bool(sources), image is not None
        )
    )
    return images_view(out, draft.dtype, value.shape)


def border_images(draft: Draft, x: Tensor) -> tuple[str, ...]:
    """Inputs of the interface whose channels, side by side, are these images; none where they are not."""
    parts = x.parts if isinstance(x, Concat) and x not in draft.made and x.axis == 1 else (x,)
    inputs = {spec.name: spec for spec in draft.signature.inputs}
    for part in parts:
        if not isinstance(part, View) or part.buffer not in inputs or len(part.shape) != 4:
            return ()
        spec = inputs[part.buffer]
        if part != dense(spec.name, spec.dtype, tuple(map(Dim.of, spec.dims))).cast(part.dtype):
            return ()
    channels = sum(part.shape[1].number for part in parts)
    names = tuple(part.buffer for part in parts if isinstance(part, View))
    return names if len(parts) <= 2 and channels <= BORDER_CHANNELS else ()


def _bias(draft: Draft, value: Contraction, length: int) -> tuple[str, int]:
    bias = value.bias
    if value.vector is not None and bias is not None:
        return draft.hoist(value.vector, bias)
    name = bias.name if bias is not None else "zeros"

    def read() -> Array:
        row: Array = np.zeros(length, draft.dtype)
        if bias is not None:
            row[: bias.shape[0]] = bias.tensor.numpy()
        return row

    return draft.store(f"{name}.{length}", read, shape=(length,)), 0


def _krsc_shape(weight: Weight, padded: tuple[int, int]) -> tuple[int, ...]:
    return (padded[0], *weight.shape[2:], padded[1])


def _krsc(weight: Weight, padded: tuple[int, int]) -> Array:
    values = weight.tensor.numpy()
    array: Array = np.zeros(_krsc_shape(weight, padded), values.dtype)
    array[: values.shape[0], ..., : values.shape[1]] = np.moveaxis(values, 1, -1)
    return array


def _matmul(draft: Draft, value: Contraction, out: View | None) -> View:
    order = (0, 2, 1) if value.kind == "matmul_of_columns" else tuple(range(len(value.shape)))
    x = materialise(draft, value.x).transpose(order)
    weight = value.weight
    width = weight.shape[1 if value.transposed_weight else 0]
    residual = rows(draft, materialise(draft, value.residual).transpose(order)) if value.residual is not None else None
    stored = draft.store(f"{weight.name}.nk", lambda: _nk(value), shape=(width, x.shape[-1].number))
    bias = _bias(draft, value, width)[0] if value.bias is not None else None
    operand = rows(draft, x).strided()
    made = draft.new_rows(value.name, (*x.shape[:-1], Dim.of(width)))[1] if out is None else out
    flat = _as_rows(made)
    assert flat is not None
    draft.emit(Matmul(operand, stored, flat.strided(), bias, residual.strided() if residual else None))
    return made.transpose(order)


def _nk(value: Contraction) -> Array:
    array = value.weight.tensor.numpy()
    array = array.reshape(array.shape[:2])  # a convolution of one tap has axes of 1 behind
    return np.ascontiguousarray(array.T) if value.transposed_weight else array

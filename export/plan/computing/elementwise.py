"""What is computed number by number, concatenated or cast."""

import numpy as np

from saishiki.export.plan.dims import ZERO
from saishiki.export.plan.draft import Draft, padded_images
from saishiki.export.plan.operands import aligned, compute, compute_into, copy, materialise, with_padding, write_parts
from saishiki.export.plan.values import Cast, Concat, Map, Pending, Sum
from saishiki.export.plan.view import Run, View, dense
from saishiki.runtime.plan.ops import Pointwise


@compute.register
def _(value: Concat, draft: Draft) -> View:
    buffer, view = _new_tensor(draft, value)
    if value.axis == 1:
        copy(draft, tuple(materialise(draft, part) for part in value.parts), 1, _whole_images(draft, buffer, view))
    else:
        write_parts(draft, value, view)
    return view


def _whole_images(draft: Draft, buffer: str, view: View) -> View:
    """The view with the padding of its channels, which a copy fills with zeros."""
    dims = draft.buffers[buffer].dims
    padded = len(view.shape) == 4 and dims == tuple(map(str, padded_images(view.shape)))
    return with_padding(view, int(dims[-1])) if padded else view


def _new_tensor(draft: Draft, value: Pending) -> tuple[str, View]:
    """A buffer for a tensor: pictures with their channels innermost, all else in the order of its dims."""
    is_images = len(value.shape) == 4 and value.shape[1].is_number
    return draft.new_images(value.name, value.shape) if is_images else draft.new_rows(value.name, value.shape)


@compute.register
def _(value: Sum, draft: Draft) -> View:
    return pointwise(draft, value, None)


@compute.register
def _(value: Map, draft: Draft) -> View:
    return pointwise(draft, value, None)


@compute_into.register
def _(value: Sum, draft: Draft, out: View) -> bool:
    pointwise(draft, value, out)
    return True


@compute_into.register
def _(value: Map, draft: Draft, out: View) -> bool:
    pointwise(draft, value, out)
    return True


def pointwise(draft: Draft, value: Sum | Map, out: View | None) -> View:
    """Emits a function of each number, into ``out`` or a new buffer.

    In the order in which the result lies: that of the first operand of full size, where that is dense.
    """
    function, operands = (
        ("add", (value.left, value.right)) if isinstance(value, Sum) else (value.function, value.operands)
    )
    views = [materialise(draft, operand).expand(value.shape) for operand in operands]
    out = _like(draft, value, views) if out is None else out
    together = aligned((*views, out), along=-1)
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


@compute.register
def _(value: Cast, draft: Draft) -> View:
    return materialise(draft, value.x).cast(value.dtype)

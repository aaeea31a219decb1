"""Operands: a tensor as an operation needs it, computed where it waits, copied where its layout asks for that."""

from collections.abc import Callable
from dataclasses import replace
from functools import singledispatch

from saishiki.export.plan.dims import ZERO, Dim, product
from saishiki.export.plan.draft import Draft, LoweringError, images_view, padded_channels, padded_images
from saishiki.export.plan.values import Cast, Concat, Pending, Tensor
from saishiki.export.plan.view import Run, View
from saishiki.runtime.plan.ops import Copy


@singledispatch
def compute(value: Pending, draft: Draft) -> View:
    """Emits what computes a waiting tensor; ``computing/`` has a function for each kind."""
    raise AssertionError(f"nothing computes {value}")


@singledispatch
def compute_into(value: Pending, draft: Draft, out: View) -> bool:
    """Emits what computes a waiting tensor into a part of a buffer; False, and nothing, where that is not possible."""
    return False


def materialise(draft: Draft, value: Tensor) -> View:
    """A tensor as a view of a buffer; computes it where that has not been done."""
    if isinstance(value, View):
        return value
    if value not in draft.made:
        draft.made[value] = compute(value, draft)
    return draft.made[value]


def write(draft: Draft, value: Tensor, out: View) -> None:
    """Computes a tensor into a part of a buffer or into the interface; copies it there where that is not possible."""
    if isinstance(value, Cast) and value not in draft.made:
        value = value.x
    waits = not isinstance(value, View) and value not in draft.made and value.uses <= 1
    if waits and isinstance(value, Concat):
        write_parts(draft, value, out)
    elif not waits or isinstance(value, View) or not compute_into(value, draft, out):
        copy(draft, (materialise(draft, value),), 0, out)


def write_parts(draft: Draft, value: Concat, out: View) -> None:
    """Computes or copies the parts of a concat, each to its place."""
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
    if view == images_view(view.buffer, view.dtype, view.shape) and holds(draft, view, padded_images(view.shape)):
        draft.redeclare(view.buffer, padded_images(view.shape))
        return view.buffer

    def copied(name: str) -> View:
        _, made = draft.new_images(name, view.shape)
        copy(draft, (view,), 1, with_padding(made, padded_channels(view.shape[1].number)))
        return made

    return _copied_once(draft, "images", view, copied).buffer


def rows(draft: Draft, value: Tensor) -> View:
    """A tensor (..., K) as (rows, K) with K innermost; copies where its rows are not equally far apart."""
    view = materialise(draft, value)
    if not view.is_cast and (flat := as_rows(view)):
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


def as_rows(view: View) -> View | None:
    """A tensor (..., K) as (rows, K), or None where K is not innermost or the rows are not equally far apart."""
    try:
        flat = view.reshape((product(view.shape[:-1]), view.shape[-1]))
    except ValueError:
        return None
    return flat if len(flat.axes[0]) <= 1 and _innermost(flat) else None


def _innermost(view: View) -> bool:
    return all(run.stride == Dim.of(1) for run in view.axes[-1])


def holds(draft: Draft, view: View, dims: tuple[Dim, ...]) -> bool:
    """Whether the view's buffer is as long as dims are, so that its name alone says what is meant."""
    buffer = draft.buffers.get(view.buffer)
    return buffer is not None and not view.is_cast and product(map(Dim.of, buffer.dims)) == product(dims)


def copy(draft: Draft, parts: tuple[View, ...], axis: int, out: View) -> None:
    """Copies parts behind one another along an axis into a view."""
    if any(len(part.axes[axis]) > 1 for part in (*parts, out)) and len(parts) > 1:
        raise LoweringError(f"cannot copy {len(parts)} parts along an axis of several runs")
    is_whole = len(parts) == 1 and parts[0].shape == out.shape
    together = aligned((*parts, out), along=-1 if is_whole else axis)
    at = sum(max(1, len(runs)) for runs in together[-1].axes[:axis])
    strided = [view.strided() for view in together]
    draft.emit(Copy(tuple(strided[:-1]), at, strided[-1]))


def aligned(views: tuple[View, ...], along: int) -> tuple[View, ...]:
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


def with_padding(view: View, channels: int) -> View:
    """Images with the padding of their channels, which a copy fills with zeros."""
    return replace(view, axes=(view.axes[0], (Run(Dim.of(channels), Dim.of(1)),), *view.axes[2:]))

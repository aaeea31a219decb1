"""Group norms: their two launches, with the concat, the upsampling or the sum in front of them."""

from dataclasses import replace

import numpy as np

from saishiki.export.plan.dims import ZERO, Dim, product
from saishiki.export.plan.draft import Draft, LoweringError
from saishiki.export.plan.operands import compute, holds, images, materialise, view_of_rows
from saishiki.export.plan.values import Concat, Norm, Pending, Sum, Tensor, Weight
from saishiki.export.plan.view import View, dense
from saishiki.runtime.plan.ops import NormApply, NormInput, NormStatistics


@compute.register
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
        f"{weight.name}.fp32", lambda: weight.numbers().astype(np.float32), shape=weight.shape, dtype="float32"
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
        if flat.reshape((batch, product(pixels), channels)) == whole and _is_declared(draft, view, batch, channels):
            return view.buffer
    except ValueError:
        pass
    if len(view.shape) == 4:
        return images(draft, view)
    return view_of_rows(draft, flat).buffer


def _is_declared(draft: Draft, view: View, batch: Dim, channels: Dim) -> bool:
    """Whether the buffer's own dims tell the same pictures and channels: a norm goes by them."""
    if not holds(draft, view, view.shape):
        return False
    first, *_, last = draft.buffers[view.buffer].dims
    return (Dim.of(first), Dim.of(last)) == (batch, channels)

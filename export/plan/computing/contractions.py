"""Convolutions and products, and how their weights are repacked."""

import numpy as np

from saishiki.export.plan.dims import Dim
from saishiki.export.plan.draft import Draft, images_view, padded_channels, padded_images
from saishiki.export.plan.operands import as_rows, compute, compute_into, images, materialise, rows
from saishiki.export.plan.values import Concat, Contraction, Tensor, Weight
from saishiki.export.plan.view import View, dense
from saishiki.runtime.plan.ops import Convolution, Matmul
from saishiki.runtime.signature import Array

BORDER_CHANNELS = 16
"""A first convolution reads fp32 images as they are where they have at most so many channels."""


@compute.register
def _(value: Contraction, draft: Draft) -> View:
    if value.kind == "convolution":
        return convolution(draft, value)
    return _matmul(draft, value, None)


@compute_into.register
def _(value: Contraction, draft: Draft, out: View) -> bool:
    if value.kind != "matmul" or as_rows(out) is None:
        return False
    _matmul(draft, value, out)
    return True


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
            row[: bias.shape[0]] = bias.numbers()
        return row

    return draft.store(f"{name}.{length}", read, shape=(length,)), 0


def _krsc_shape(weight: Weight, padded: tuple[int, int]) -> tuple[int, ...]:
    return (padded[0], *weight.shape[2:], padded[1])


def _krsc(weight: Weight, padded: tuple[int, int]) -> Array:
    values = weight.numbers()
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
    flat = as_rows(made)
    assert flat is not None
    draft.emit(Matmul(operand, stored, flat.strided(), bias, residual.strided() if residual else None))
    return made.transpose(order)


def _nk(value: Contraction) -> Array:
    array = value.weight.numbers()
    array = array.reshape(array.shape[:2])  # a convolution of one tap has axes of 1 behind
    return np.ascontiguousarray(array.T) if value.transposed_weight else array

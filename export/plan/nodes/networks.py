"""Nodes that a network's time goes into: convolutions, products, norms, attention, and what changes resolution."""

import math

import onnx_ir as ir

from saishiki.export.plan.computing import store_fp32
from saishiki.export.plan.dims import ONE, Dim
from saishiki.export.plan.draft import Draft, LoweringError, images_view, padded_images
from saishiki.export.plan.nodes.shapes import uses_of
from saishiki.export.plan.operands import heads, images, materialise, rows
from saishiki.export.plan.values import Contraction, Norm, Tensor, Weight
from saishiki.export.plan.view import View
from saishiki.runtime.plan.ops import Attention, LayerNorm, Mean, Pool


def lower_conv(node: ir.Node, draft: Draft) -> None:
    weight, x = draft.weight(node.inputs[1]), draft.tensor(node.inputs[0])
    bias = _optional_bias(node, draft)
    taps = weight.shape[2:]
    attributes = node.attributes
    if attributes.get_int("group", 1) != 1 or set(attributes.get_ints("dilations", (1,))) != {1}:
        raise LoweringError("has groups or dilations; only dense convolutions are lowered")
    if attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise LoweringError("leaves its padding to auto_pad; it must be stated")
    strides, pads = attributes.get_ints("strides", (1,) * len(taps)), attributes.get_ints("pads", (0,) * 2 * len(taps))
    if len(taps) == 1:
        _lower_conv_of_columns(node, draft, taps, strides, pads)
        return
    if len(taps) != 2 or len(set(strides)) != 1:
        raise LoweringError(f"has strides {list(strides)} over {len(taps)} axes; expected two equal ones")
    top, left, bottom, right = pads
    stride = strides[0]
    height, width = (
        _length(size, before + after, tap, stride)
        for size, before, after, tap in zip(x.shape[2:], (top, left), (bottom, right), taps, strict=True)
    )
    shape = (x.shape[0], Dim.of(weight.shape[0]), height, width)
    draft.values[node.outputs[0]] = Contraction(
        name=str(node.outputs[0].name),
        shape=shape,
        dtype=x.dtype,
        uses=uses_of(node.outputs[0]),
        kind="convolution",
        x=x,
        weight=weight,
        bias=bias,
        stride=stride,
        padding=(top, left, bottom, right),
    )


def _length(size: Dim, padding: int, taps: int, stride: int) -> Dim:
    """Of a convolution's output. Sizes are multiples of all strides, which settles what is rounded down."""
    surplus = padding - taps + stride
    if size.is_number:
        return Dim.of((size.number + surplus - stride) // stride + 1)
    if not 0 <= surplus < stride:
        raise LoweringError(
            f"pads {taps} taps at stride {stride} by {padding}, so that {size} becomes no multiple of it"
        )
    return size / stride


def _lower_conv_of_columns(node: ir.Node, draft: Draft, taps: tuple[int, ...], strides: object, pads: object) -> None:
    if taps != (1,) or set(strides) != {1} or set(pads) != {0}:  # type: ignore[call-overload]
        raise LoweringError("is a convolution over one axis of more than one tap; only one tap is lowered")
    x, weight = draft.tensor(node.inputs[0]), draft.weight(node.inputs[1])
    draft.values[node.outputs[0]] = Contraction(
        name=str(node.outputs[0].name),
        shape=(x.shape[0], Dim.of(weight.shape[0]), x.shape[2]),
        dtype=x.dtype,
        uses=uses_of(node.outputs[0]),
        kind="matmul_of_columns",
        x=x,
        weight=weight,
        bias=_optional_bias(node, draft),
    )


def _optional_bias(node: ir.Node, draft: Draft) -> Weight | None:
    return draft.weight(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None


def lower_matmul(node: ir.Node, draft: Draft) -> None:
    x, weight = draft.tensor(node.inputs[0]), draft.weight(node.inputs[1])
    _lower_product(node, draft, x, transposed=True, width=weight.shape[1])


def lower_gemm(node: ir.Node, draft: Draft) -> None:
    attributes = node.attributes
    if attributes.get_int("transA", 0) or any(attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        raise LoweringError("transposes its rows or scales; only x w and x w^T + b are lowered")
    transposed = not attributes.get_int("transB", 0)
    weight = draft.weight(node.inputs[1])
    _lower_product(node, draft, draft.tensor(node.inputs[0]), transposed, weight.shape[1 if transposed else 0])


def _lower_product(node: ir.Node, draft: Draft, x: Tensor, transposed: bool, width: int) -> None:
    draft.values[node.outputs[0]] = Contraction(
        name=str(node.outputs[0].name),
        shape=(*x.shape[:-1], Dim.of(width)),
        dtype=x.dtype,
        uses=uses_of(node.outputs[0]),
        kind="matmul",
        x=x,
        weight=draft.weight(node.inputs[1]),
        transposed_weight=transposed,
        bias=_optional_bias(node, draft),
    )


def lower_group_norm(node: ir.Node, draft: Draft) -> None:
    x = draft.tensor(node.inputs[0])
    output = node.outputs[0]
    draft.values[output] = Norm(
        name=str(output.name),
        shape=x.shape,
        dtype=x.dtype,
        uses=uses_of(output),
        x=x,
        groups=node.attributes["num_groups"].as_int(),
        epsilon=node.attributes.get_float("epsilon", 1e-5),
        weight=draft.weight(node.inputs[1]),
        bias=draft.weight(node.inputs[2]),
    )


def lower_layer_norm(node: ir.Node, draft: Draft) -> None:
    view = materialise(draft, draft.tensor(node.inputs[0]))
    if node.attributes.get_int("axis", -1) % len(view.axes) != len(view.axes) - 1:
        raise LoweringError("normalises over more than the last axis")
    weight = draft.weight(node.inputs[1])
    bias = _optional_bias(node, draft)
    out, made = draft.new_rows(str(node.outputs[0].name), view.shape)
    names = [store_fp32(draft, tensor) if tensor is not None else None for tensor in (weight, bias)]
    draft.emit(LayerNorm(rows(draft, view).strided(), out, node.attributes.get_float("epsilon", 1e-5), *names))
    draft.values[node.outputs[0]] = made


def lower_attention(node: ir.Node, draft: Draft) -> None:
    is_causal: int = node.attributes.get_int("is_causal", 0)
    if len([value for value in node.inputs if value is not None]) != 3 or is_causal:
        raise LoweringError("has a mask or a cache; only attention of q, k and v is lowered")
    q, k, v = (_heads(draft, draft.tensor(value)) for value in node.inputs)
    batch, count, tokens, width = q.shape
    scale = node.attributes.get_float("scale", 1 / math.sqrt(width.number))
    out, made = draft.new_rows(str(node.outputs[0].name), (batch, tokens, count, v.shape[3]))
    draft.emit(Attention(q.strided(), k.strided(), v.strided(), out, scale))
    draft.values[node.outputs[0]] = made.transpose((0, 2, 1, 3))


def _heads(draft: Draft, value: Tensor) -> View:
    """(B, heads, T, D) with D innermost and every axis in one run; copies where it is not."""
    if len(value.shape) != 4:
        raise LoweringError(f"attends over tensors of {len(value.shape)} axes, expected (B, heads, T, D)")
    view = materialise(draft, value)
    if all(len(axis) <= 1 for axis in view.axes) and view.axes[3][0].stride == ONE and not view.is_cast:
        return view
    return heads(draft, view)


def lower_average_pool(node: ir.Node, draft: Draft) -> None:
    attributes = node.attributes
    both = (attributes.get_ints("kernel_shape"), attributes.get_ints("strides", (1, 1)))
    if both != ((2, 2), (2, 2)) or any(attributes.get_ints("pads", (0, 0, 0, 0))):
        raise LoweringError(f"pools {both[0]} at strides {both[1]}; only 2x2 without padding is lowered")
    x = draft.tensor(node.inputs[0])
    batch, channels, height, width = x.shape
    source = images(draft, x)
    shape = (batch, channels, height / 2, width / 2)
    out = draft.new_buffer(str(node.outputs[0].name), padded_images(shape))
    draft.emit(Pool(source, out))
    draft.values[node.outputs[0]] = images_view(out, draft.dtype, shape)


def lower_mean(node: ir.Node, draft: Draft) -> None:
    x = draft.tensor(node.inputs[0])
    axes = [dim.number % len(x.shape) for dim in draft.lengths(node.inputs[1]).dims]
    keepdims: int = node.attributes.get_int("keepdims", 1)
    if len(x.shape) != 4 or sorted(axes) != [2, 3] or keepdims:
        raise LoweringError(f"takes the mean over axes {axes} of {len(x.shape)}; only over all pixels is lowered")
    source = images(draft, x)
    out, made = draft.new_rows(str(node.outputs[0].name), x.shape[:2])
    draft.emit(Mean(source, out))
    draft.values[node.outputs[0]] = made


def lower_resize(node: ir.Node, draft: Draft) -> None:
    scales = draft.weight(node.inputs[2]).numbers() if len(node.inputs) > 2 and node.inputs[2] else None
    mode = node.attributes.get_string("mode", "nearest")
    if mode != "nearest" or scales is None or scales.tolist() != [1, 1, 2, 2]:
        raise LoweringError(f"resizes by {scales} with mode {mode}; only nearest by two is lowered")
    view = materialise(draft, draft.tensor(node.inputs[0]))
    draft.values[node.outputs[0]] = view.repeat(2, 2).repeat(3, 2)

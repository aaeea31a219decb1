"""From an fp32 graph to its fp16 twin, of the same structure: fp16 weights and activations, fp32 at the interface.

One trace serves both precisions, so they differ in nothing but dtypes; tracing is also the slowest part of an export.
"""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from saishiki.export.functions import FP32_OPERANDS as FUNCTIONS_FP32_OPERANDS
from saishiki.export.lazy_weights import half_weight

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes the submodules that a node came from."""

FP32_OPERANDS = {"Resize": (1, 2), **FUNCTIONS_FP32_OPERANDS}
"""Inputs that an operator takes in fp32 whatever the dtype of its data; what they are computed from stays fp32 too."""

TYPED_BY_ATTRIBUTE = frozenset({"Constant", "EyeLike", "RandomNormal", "RandomUniform"})


def half_graph(model: ir.Model, *, keep_fp32: Collection[str]) -> ir.Model:
    """A copy of an fp32 model that computes in fp16, but for the nodes of the named submodules.

    Inputs and outputs of the graph stay fp32; casts stand where dtypes meet. The model must still have the exporter's
    metadata, which tells the submodules.

    Raises ``ValueError`` for an operator whose float dtype is an attribute. Reading a weight that fp16 cannot hold, as
    writing the graph does, raises it too.
    """
    half = model.clone()
    rewriter = _Rewriter(half.graph, frozenset(keep_fp32))
    for node in tuple(half.graph):
        rewriter.rewrite(node)
    rewriter.restore_outputs()
    rewriter.drop_unused_weights()
    return half


class _Rewriter:
    """The graph that is being rewritten, and the value that stands for another in a dtype."""

    def __init__(self, graph: ir.Graph, keep_fp32: frozenset[str]) -> None:
        self._graph, self._keep_fp32 = graph, keep_fp32
        self._exact = _makers_of_fp32_operands(graph)
        self._first = graph[0]
        self._twins: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def rewrite(self, node: ir.Node) -> None:
        """Gives the node the operands it wants, and its outputs the dtype that follows."""
        dtype = ir.DataType.FLOAT if self._is_kept(node) else ir.DataType.FLOAT16
        if node.op_type == "ConstantOfShape" and node.outputs[0].dtype == ir.DataType.FLOAT:
            _retype_fill(node, dtype)
        if node.op_type in TYPED_BY_ATTRIBUTE and dtype == ir.DataType.FLOAT16:
            raise ValueError(f"{node.name}: {node.op_type} states its dtype itself; fold it before going to fp16")
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
                fp32 = index in FP32_OPERANDS.get(node.op_type, ())
                node.replace_input_with(index, self._in_dtype(value, ir.DataType.FLOAT if fp32 else dtype))
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                # A new type: a cloned value shares its old one with the value it was cloned from.
                value.type = ir.TensorType(dtype)
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", dtype)

    def _is_kept(self, node: ir.Node) -> bool:
        scopes = node.metadata_props.get(SCOPES, "")
        return node in self._exact or any(f"'{name}'" in scopes or f"'{name}." in scopes for name in self._keep_fp32)

    def _in_dtype(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        key = value, dtype
        if key not in self._twins:
            self._twins[key] = self._half_weight(value) if value.is_initializer() else self._cast(value, dtype)
        return self._twins[key]

    def _half_weight(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        weight = half_weight(value.const_value)
        weight.name = f"{value.name}.half"
        twin = ir.Value(
            name=weight.name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT16), const_value=weight
        )
        self._graph.register_initializer(twin)
        return twin

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = f"{value.name}.{'half' if dtype == ir.DataType.FLOAT16 else 'float'}"
        node = ir.node("Cast", [value], {"to": dtype}, name=name)
        (cast,) = node.outputs
        cast.name, cast.shape, cast.type = name, value.shape, ir.TensorType(dtype)
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._first, node)
        else:
            self._graph.insert_after(producer, node)
        return cast

    def restore_outputs(self) -> None:
        """Casts the graph's outputs back to fp32, under their names."""
        for index, value in enumerate(self._graph.outputs):
            if value.dtype == ir.DataType.FLOAT16:
                output = self._in_dtype(value, ir.DataType.FLOAT)
                value.name, output.name = f"{value.name}.half", value.name
                self._graph.outputs[index] = output

    def drop_unused_weights(self) -> None:
        """Removes the fp32 weights that nothing reads any more; their fp16 twins take their names."""
        weights = self._graph.initializers
        for name, value in tuple(weights.items()):
            if value.uses() or value.is_graph_output():
                continue
            del weights[name]
            if twin := self._twins.get((value, ir.DataType.FLOAT16)):
                del weights[twin.name or ""]
                twin.name = name
                self._graph.register_initializer(twin)


def _retype_fill(node: ir.Node, dtype: ir.DataType) -> None:
    """Gives what a ``ConstantOfShape`` fills with the dtype; 0 where it does not say."""
    fill = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill.astype(dtype.numpy())))


def _makers_of_fp32_operands(graph: ir.Graph) -> frozenset[ir.Node]:
    """The nodes that an fp32 operand is computed by: rounding on its way there would be rounding it."""
    operands = [node.inputs[i] for node in graph for i in FP32_OPERANDS.get(node.op_type, ()) if i < len(node.inputs)]
    found: set[ir.Node] = set()
    while operands:
        value = operands.pop()
        maker = value.producer() if value is not None and value.dtype == ir.DataType.FLOAT else None
        if maker is not None and maker not in found:
            found.add(maker)
            operands.extend(maker.inputs)
    return frozenset(found)

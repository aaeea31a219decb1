"""An ONNX graph at given sizes: every dim a number, no arithmetic on shapes left.

Functions are inlined but for those of our ops, which are counted as the one kernel that they are (:mod:`.node_work`).
Only onnx is needed, and of the weights only the shapes: ``file.onnx.data`` is not read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from saishiki.export.functions.local_function import DOMAIN
from saishiki.export.functions.translation import FP32_OPERANDS as FUNCTIONS

Constants = dict[str, NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class SizedTensor:
    """A tensor with a known shape; ``stored`` ones are weights and constants."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    integer: bool
    stored: bool

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.itemsize


@dataclass(frozen=True)
class SizedNode:
    """A node between such tensors; inputs that are left out are None."""

    name: str
    op: str
    inputs: tuple[SizedTensor | None, ...]
    outputs: tuple[SizedTensor, ...]
    attributes: Mapping[str, Any]

    @property
    def reads(self) -> tuple[SizedTensor, ...]:
        """The inputs that are there, each once."""
        return tuple(dict.fromkeys(tensor for tensor in self.inputs if tensor is not None))


@dataclass(frozen=True)
class SizedGraph:
    """Nodes in an order in which they can run."""

    nodes: tuple[SizedNode, ...]
    inputs: tuple[SizedTensor, ...]
    outputs: tuple[SizedTensor, ...]


def sized_model(path: Path, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The model of a file, as :func:`sized`; raises ``ValueError`` as it does, naming the file."""
    try:
        return sized(onnx.load(path, load_external_data=False), sizes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def sized(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The model with its symbolic dims replaced, functions inlined but for those of our ops, shape arithmetic computed.

    Raises ``ValueError`` where a dim has no size.
    """
    inlined = [(function.domain, function.name) for function in model.functions if not is_op_of_ours(function)]
    model = inliner.inline_selected_functions(model, inlined)
    for tensor in model.graph.input:
        for dim in tensor.type.tensor_type.shape.dim:
            if dim.dim_param:
                if dim.dim_param not in sizes:
                    raise ValueError(f"{tensor.name} has a dim {dim.dim_param!r}, but the sizes are {sizes}")
                dim.dim_value = sizes[dim.dim_param]
    for tensor in model.graph.output:
        tensor.type.tensor_type.ClearField("shape")
    return _without_shape_arithmetic(model)


def is_op_of_ours(function: onnx.FunctionProto) -> bool:
    """Whether a function stands for one of our kernels."""
    return function.domain == DOMAIN and function.name in FUNCTIONS


def sized_graph(model: onnx.ModelProto) -> SizedGraph:
    """The nodes of :func:`sized_model`, with the shapes of all they read and write."""
    tensors = {tensor.name: tensor for tensor in _tensors(model)}

    def tensor_of(name: str, reader: str) -> SizedTensor:
        if name not in tensors:
            raise ValueError(
                f"{reader}: the shape of its {name!r} does not follow from the sizes of the graph's inputs"
            )
        return tensors[name]

    nodes = []
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        inputs = tuple(tensor_of(each, name) if each else None for each in node.input)
        outputs = tuple(tensor_of(each, name) for each in node.output if each)
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        nodes.append(SizedNode(name, op, inputs, outputs, attributes))
    stored = {initializer.name for initializer in model.graph.initializer}
    return SizedGraph(
        tuple(nodes),
        tuple(tensors[value.name] for value in model.graph.input if value.name not in stored),
        tuple(tensors[value.name] for value in model.graph.output),
    )


def _tensors(model: onnx.ModelProto) -> list[SizedTensor]:
    stored = [
        _sized(initializer.name, tuple(initializer.dims), initializer.data_type, stored=True)
        for initializer in model.graph.initializer
    ]
    found = {tensor.name for tensor in stored}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        shape = _static_shape(value)
        if shape is not None and value.name not in found:
            stored.append(_sized(value.name, shape, value.type.tensor_type.elem_type, stored=False))
    return stored


def _sized(name: str, shape: tuple[int, ...], elem_type: int, *, stored: bool) -> SizedTensor:
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    return SizedTensor(name, shape, dtype.itemsize, bool(np.issubdtype(dtype, np.integer)), stored)


def _static_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every GroupNormalization as the operators that define it, as ONNX Runtime runs it on a CPU."""
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    # The inliner asks for the type of all that the operator reads, weights included.
    declared = {value.name for value in typed.graph.value_info}
    typed.graph.value_info.extend(
        helper.make_tensor_value_info(initializer.name, initializer.data_type, initializer.dims)
        for initializer in typed.graph.initializer
        if initializer.name not in declared
    )
    functions = [("", "GroupNormalization")]
    return inliner.inline_selected_functions(typed, functions, inline_schema_functions=True)


def _without_shape_arithmetic(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes what follows from shapes and constants alone until nothing more does, and infers all shapes."""
    known = {
        initializer.name: numpy_helper.to_array(initializer)
        for initializer in model.graph.initializer
        if initializer.data_location != onnx.TensorProto.EXTERNAL
    }
    while True:
        shapes = _infer_shapes(model)
        found = _computed(model, shapes, known)
        if not found:
            return model
        known |= found
        kept = [node for node in model.graph.node if node.output[0] not in found]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in found.items())


def _infer_shapes(model: onnx.ModelProto) -> Shapes:
    """Writes the shapes of all tensors into the model, and returns those that are static."""
    # Operators that are defined by others have no shape inference of their own.
    bare = expanded(model)
    del bare.graph.value_info[:]
    inferred = shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    names = {name for node in model.graph.node for name in node.output}
    ends = {value.name: value for value in inferred.graph.output}
    for value in model.graph.output:
        value.CopyFrom(ends[value.name])
    del model.graph.value_info[:]
    model.graph.value_info.extend(value for value in inferred.graph.value_info if value.name in names)
    values = (*model.graph.input, *model.graph.value_info)
    return {value.name: shape for value in values if (shape := _static_shape(value)) is not None}


def _computed(model: onnx.ModelProto, shapes: Shapes, known: Constants) -> Constants:
    """The outputs of nodes whose inputs are all known, and of Shape nodes whose input's shape is."""
    found: Constants = {}
    for node in model.graph.node:
        feeds = {name: known.get(name, found.get(name)) for name in node.input if name}
        if node.op_type == "Shape" and node.input[0] in shapes:
            # Only the shape counts, and an array that repeats one number takes no memory.
            feeds = {node.input[0]: np.broadcast_to(np.float32(0), shapes[node.input[0]])}
        if all(value is not None for value in feeds.values()) and len(node.output) == 1:
            results: Any = ReferenceEvaluator(node).run(None, feeds)
            found[node.output[0]] = np.asarray(results[0])
    return found

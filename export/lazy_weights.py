"""Tracing without weights: parameters that hold no values while the graph is made, and are read when it is written."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from saishiki.models.streaming import value_of


class LazyWeight(ir.LazyTensor):
    """A weight of a graph that is read, or computed, whenever its content is asked for.

    Args:
        identity: two weights of the same identity have the same content.
    """

    def __init__(
        self, read: Callable[[], ir.TensorProtocol], dtype: ir.DataType, shape: ir.Shape, *, identity: Hashable
    ) -> None:
        super().__init__(read, dtype, shape)
        self.identity = identity


@contextmanager
def without_weights(module: nn.Module) -> Iterator[None]:
    """Within it the module's parameters have shapes but no values, on the CPU: enough for tracing, and no memory."""
    fakes: dict[nn.Parameter, nn.Parameter] = {}
    replaced = [
        (submodule, name, parameter)
        for submodule in module.modules()
        for name, parameter in submodule._parameters.items()
        if parameter is not None
    ]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for submodule, name, parameter in replaced:
        submodule._parameters[name] = fakes.setdefault(parameter, _fake(parameter, mode))
    try:
        yield
    finally:
        for submodule, name, parameter in replaced:
            submodule._parameters[name] = parameter


def _fake(parameter: nn.Parameter, mode: FakeTensorMode) -> nn.Parameter:
    with mode:
        return nn.Parameter(torch.empty(parameter.shape, device="cpu"), requires_grad=False)


def attach_weights(model: ir.Model, module: nn.Module) -> None:
    """Gives a graph that was traced :func:`without_weights` those of the module, each to be read when it is needed."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in model.graph.initializers:
            weight = _lazy_weight(parameter)
            weight.name = name
            model.graph.initializers[name].const_value = weight


def _lazy_weight(parameter: nn.Parameter) -> LazyWeight:
    def read() -> ir.TensorProtocol:
        return ir.tensor(value_of(parameter).numpy())

    return LazyWeight(read, ir.DataType.FLOAT, ir.Shape(parameter.shape), identity=id(parameter))


def fold_transposes(model: ir.Model) -> None:
    """Replaces every transpose of a lazy weight by a lazy weight; folded by the exporter it would stay in memory.

    What is transposed twice becomes one weight, so that equal products with it can be told to be equal.
    """
    initializers = model.graph.initializers
    known: dict[Hashable, ir.Value] = {}
    for node in [node for node in model.graph if node.op_type == "Transpose"]:
        (operand,) = node.inputs
        if operand is not None and isinstance(operand.const_value, LazyWeight):
            weight = _transposed(operand.const_value, node)
            folded = known.setdefault(weight.identity, _value_of(weight))
            ir.convenience.replace_all_uses_with(node.outputs[0], folded)
            model.graph.remove(node, safe=True)
    for folded in known.values():
        initializers.add(folded)
    for name in [name for name, value in initializers.items() if not value.uses() and not value.is_graph_output()]:
        del initializers[name]


def _value_of(weight: LazyWeight) -> ir.Value:
    return ir.Value(name=weight.name, shape=weight.shape, type=ir.TensorType(weight.dtype), const_value=weight)


def _transposed(weight: LazyWeight, node: ir.Node) -> LazyWeight:
    axes = tuple(node.attributes.get_ints("perm", range(len(weight.shape))[::-1]))

    def read() -> ir.TensorProtocol:
        return ir.tensor(weight.numpy().transpose(axes))

    shape = ir.Shape(weight.shape[axis] for axis in axes)
    folded = LazyWeight(read, weight.dtype, shape, identity=("transposed", axes, weight.identity))
    folded.name = node.outputs[0].name
    return folded


def half_weight(weight: ir.TensorProtocol) -> LazyWeight:
    """The fp16 twin of a weight, rounded when it is read; then raises ``ValueError`` where fp16 cannot hold it."""

    def read() -> ir.TensorProtocol:
        values = weight.numpy()
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16)
        if not np.isfinite(rounded).all():
            largest = np.abs(values).max()
            raise ValueError(f"{weight.name} holds {largest:g}, more than fp16 can; keep its module in fp32")
        return ir.tensor(rounded)

    identity = ("fp16", weight.identity if isinstance(weight, LazyWeight) else id(weight))
    return LazyWeight(read, ir.DataType.FLOAT16, ir.Shape(weight.shape.numpy()), identity=identity)

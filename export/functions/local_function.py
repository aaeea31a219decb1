"""An op of ours in an ONNX graph: one node of the domain ``saishiki``, and a model-local function that says what it is.

TensorRT-RTX takes no kernels of others, so a node's function spells it out in standard operators, in the form that
engines fuse best. ONNX Runtime and TensorRT-RTX inline it. It has no dtype of its own: it serves fp32, fp16 and bf16.

Every form of an op has an operator name of its own. ``FunctionProto.overload`` is made for forms and ONNX Runtime obeys
it, but TensorRT-RTX 1.7 looks functions up by their names alone and computes all of them by one body, without a word.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx.defs import OpSchema
from onnx_ir.tape import Tape
from onnxscript.values import Op, Opset

DOMAIN = "saishiki"
VERSION = 1
OPSET = 23

DATA = "T"
"""The type of inputs that are in the dtype of the output."""
FP32 = "tensor(float)"
"""The type of inputs that are fp32 whatever the dtype of the data."""
INT64 = "tensor(int64)"
DATA_TYPES = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]


class Body:
    """A function's body as it is written: its inputs by name, and standard operators to apply to them."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self._inputs = {name: ir.Value(name=name) for name in inputs}
        self._tape = Tape()

    def __getitem__(self, name: str) -> ir.Value:
        return self._inputs[name]

    def __contains__(self, name: str) -> bool:
        return name in self._inputs

    def op(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The output of a standard operator."""
        return self._tape.op(operator, inputs, attributes)

    def ints(self, *values: int) -> ir.Value:
        """A vector of int64."""
        return self.op("Constant", value_ints=list(values))

    def int_attribute(self, name: str) -> ir.Value:
        """An attribute of the call, as a vector of one int64."""
        number = self.op("Constant", value_int=ir.RefAttr("value_int", name, ir.AttributeType.INT))
        return self.op("Reshape", number, self.ints(1))

    def number(self, value: float) -> ir.Value:
        """An fp32 scalar."""
        return self.op("Constant", value_float=value)

    def fp32(self, value: ir.Value) -> ir.Value:
        """The value in fp32."""
        return self.op("Cast", value, to=ir.DataType.FLOAT)

    def graph(self, output: ir.Value) -> ir.Graph:
        """All that was written, with names that are the same in every process."""
        for index, node in enumerate(self._tape.nodes):
            node.name, node.outputs[0].name = f"{node.op_type}_{index}", f"value_{index}"
        output.name = "out"
        inputs = list(self._inputs.values())
        return ir.Graph(inputs, [output], nodes=self._tape.nodes, opset_imports={"": OPSET})


@dataclass(frozen=True)
class LocalFunction:
    """One form of an op.

    Args:
        name: the operator of its nodes.
        inputs: ``DATA``, ``FP32`` or ``INT64`` of each, in the node's order.
        attributes: names; all are ints that every node states.
        write: writes the body and returns the output.
    """

    name: str
    inputs: Mapping[str, str]
    attributes: tuple[str, ...]
    write: Callable[[Body], ir.Value]

    @property
    def fp32_operands(self) -> tuple[int, ...]:
        """Which inputs must not be rounded."""
        return tuple(index for index, kind in enumerate(self.inputs.values()) if kind == FP32)

    def schema(self) -> OpSchema:
        """The interface of a node."""
        return OpSchema(
            self.name,
            DOMAIN,
            VERSION,
            inputs=[OpSchema.FormalParameter(name, kind) for name, kind in self.inputs.items()],
            outputs=[OpSchema.FormalParameter("out", DATA)],
            type_constraints=[(DATA, DATA_TYPES, "fp32, fp16 or bf16")],
            attributes=[OpSchema.Attribute(name, OpSchema.AttrType.INT) for name in self.attributes],
        )

    def node(self, inputs: Sequence[Any], attributes: Mapping[str, int]) -> ir.Value:
        """The output of a node, recorded while ``torch.onnx.export`` translates a call; numbers become constants."""
        output: ir.Value = Op(Opset(DOMAIN, VERSION), self.name, self.schema())(*inputs, **attributes)
        return output

    def function(self) -> ir.Function:
        """What a model with such nodes must hold."""
        body = Body(tuple(self.inputs))
        attributes = [ir.Attr(name, ir.AttributeType.INT, None) for name in self.attributes]
        return ir.Function(DOMAIN, self.name, graph=body.graph(self.write(body)), attributes=attributes)

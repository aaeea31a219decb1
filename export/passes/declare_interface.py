"""Gives the graph's inputs and outputs the names, dtypes and symbolic dims of the module's signature."""

import onnx_ir as ir

from saishiki.runtime.signature import Signature, TensorSpec


def declare_interface(model: ir.Model, signature: Signature) -> None:
    """Matches the graph's inputs and outputs, in order.

    May not apply: a graph whose number of inputs or outputs, or one of their dtypes, is not the signature's is an
    error, for then the exported module and its signature are not about the same thing. Writes names and dims.
    """
    interface = ((model.graph.inputs, signature.inputs), (model.graph.outputs, signature.outputs))
    for values, specs in interface:
        if len(values) != len(specs):
            names = [value.name for value in values]
            raise ValueError(f"the exported graph has {names}, its signature {[spec.name for spec in specs]}")
        for value, spec in zip(values, specs, strict=True):
            _declare(value, spec)


def _declare(value: ir.Value, spec: TensorSpec) -> None:
    dtype = ir.DataType[{"float32": "FLOAT", "float16": "FLOAT16", "int64": "INT64"}[spec.dtype]]
    if value.dtype != dtype:
        raise ValueError(f"{spec}: the exported graph has {value.name} of {value.dtype}")
    value.name = spec.name
    value.shape = ir.Shape([int(dim) if dim.isdigit() else dim for dim in spec.dims])

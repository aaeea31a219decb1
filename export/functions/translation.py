"""What ``torch.onnx.export`` makes of our ops, and the functions that its graphs then need."""

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch

from saishiki.export.functions import masked_split_cross_attention, split_projection
from saishiki.export.functions.local_function import DOMAIN, VERSION

_NODES: Mapping[str, Callable[[dict[str, Any]], ir.Value]] = {
    "masked_split_cross_attention": masked_split_cross_attention.node_of_call,
    "merging_split_cross_attention": masked_split_cross_attention.node_of_merging_call,
    "split_projection": split_projection.node_of_call,
}
_FUNCTIONS = {
    function.name: function for function in (*masked_split_cross_attention.FUNCTIONS, *split_projection.FUNCTIONS)
}

FP32_OPERANDS: Mapping[str, tuple[int, ...]] = {name: function.fp32_operands for name, function in _FUNCTIONS.items()}
"""By operator, the inputs that are fp32 whatever the dtype of the data: masks and scales."""


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For ``torch.onnx.export``: the node of each of our ops that this process has imported."""
    namespace: Any = getattr(torch.ops, DOMAIN)
    ops = ((name, getattr(namespace, name, None)) for name in _NODES)
    return {op.default: _translation(op.default, _NODES[name]) for name, op in ops if op is not None}


def _translation(op: Any, node_of_call: Callable[[dict[str, Any]], ir.Value]) -> Callable[..., Any]:
    parameters = op._schema.arguments

    def translate(*arguments: Any, **options: Any) -> Any:
        named = zip((parameter.name for parameter in parameters), arguments, strict=False)
        defaults = {parameter.name: parameter.default_value for parameter in parameters}
        return node_of_call(defaults | dict(named) | options)

    return translate


def add_functions(model: ir.Model) -> None:
    """Gives the model the function of every node of ours. Raises ``ValueError`` for a node that is unknown."""
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            continue
        if node.op_type not in _FUNCTIONS:
            raise ValueError(f"{node.name}: no function {DOMAIN}::{node.op_type}; expected one of {sorted(_FUNCTIONS)}")
        function = _FUNCTIONS[node.op_type].function()
        model.functions.setdefault(function.identifier(), function)
        model.opset_imports[DOMAIN] = VERSION

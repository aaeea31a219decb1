"""Removes what the exporter notes about the machine and the source, so that the same network gives the same bytes."""

import onnx_ir as ir

from saishiki.runtime.signature import Signature


def strip_metadata(model: ir.Model, signature: Signature) -> None:
    """Matches every node and value; always applies. Removes metadata (stack traces, class names) and doc strings."""
    model.metadata_props.clear()
    model.doc_string = None
    model.producer_name, model.producer_version = "saishiki", None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _strip_value(value)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            _strip_value(value)


def _strip_value(value: ir.Value) -> None:
    value.metadata_props.clear()
    value.doc_string = None

"""Removes what the exporter notes about the machine and the source, so that the same network gives the same bytes."""

import onnx_ir as ir

from saishiki.runtime.signature import Signature


def strip_metadata(model: ir.Model, signature: Signature) -> None:
    """Matches every node and value; always applies. Removes metadata (stack traces, class names) and doc strings."""
    model.metadata_props.clear()
    model.doc_string = None
    model.producer_name, model.producer_version = "saishiki", None
    for graph in model.graphs():
        _strip(graph)
        values = (*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs))
        for noted in (*graph, *values):
            _strip(noted)


def _strip(noted: ir.Graph | ir.Function | ir.Node | ir.Value) -> None:
    noted.metadata_props.clear()
    noted.doc_string = None

"""From a PyTorch module to an ONNX file that is the same, byte for byte, whenever the weights are."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import torch
import torch._dynamo
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import nn

from saishiki.export.functions import add_functions, translation_table
from saishiki.export.lazy_weights import attach_weights, fold_transposes, without_weights
from saishiki.export.passes import PASSES
from saishiki.export.weights_file import WeightsFile, weights_file
from saishiki.runtime.garbage_collection import no_garbage_collection
from saishiki.runtime.signature import Signature, Sizes

OPSET = 23


@dataclass(frozen=True)
class OnnxGraph:
    """A written graph."""

    path: Path
    nodes: int
    attentions: int


def trace(module: nn.Module, signature: Signature, sizes: Sizes) -> ir.Model:
    """A module as a graph with symbolic dims, with the exporter's notes on where its nodes come from.

    The graph's weights are read from the module when they are needed: it must live until the graph is written.

    Args:
        sizes: sizes to trace at; any that are valid and distinct from each other will do.
    """
    program = capture(module, signature, sizes)
    optimize(program)
    model: ir.Model = program.model
    add_functions(model)
    return model


def capture(module: nn.Module, signature: Signature, sizes: Sizes) -> Any:
    """The ``torch.onnx.ONNXProgram`` of a module as the exporter leaves it; arguments as of :func:`trace`."""
    inputs = tuple(torch.zeros(spec.shape(sizes), dtype=getattr(torch, spec.dtype)) for spec in signature.inputs)
    # Tracing makes millions of objects, none of them garbage: looking for some takes an eighth of its time.
    with _quiet_exporter(), no_garbage_collection(), _no_cache_of_fake_results(), without_weights(module):
        program: Any = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            dynamic_shapes=dynamic_shapes(signature),
            custom_translation_table=translation_table(),
            verbose=False,
        )
    attach_weights(program.model, module)
    fold_transposes(program.model)
    return program


def optimize(program: Any) -> None:
    """Runs the optimizer of ``torch.onnx`` on a program; it folds constants, and so looks at some small weights."""
    with _quiet_exporter(), no_garbage_collection(), slices_stay():
        program.optimize()


def write_graph(model: ir.Model, signature: Signature, path: Path, weights: WeightsFile | None = None) -> OnnxGraph:
    """Runs all passes on a traced graph and writes it.

    Args:
        weights: the file for its weights, in the same folder; None makes one of its own, named after the graph.
    """
    for rewrite in PASSES:
        rewrite(model, signature)
    with nullcontext(weights) if weights else weights_file(path.with_name(path.name + ".data")) as file:
        file.move_weights(model)
    ir.save(model, path)
    nodes = len(tuple(model.graph.all_nodes()))
    return OnnxGraph(path, nodes=nodes, attentions=_count("Attention", model.graph, model))


def _count(operator: str, graph: ir.Graph | ir.Function, model: ir.Model) -> int:
    """How often an operator is there once all local functions are inlined."""
    functions = (model.functions.get(node.op_identifier()) for node in graph.all_nodes())
    inlined = sum(_count(operator, function, model) for function in functions if function is not None)
    return inlined + sum(node.op_type == operator for node in graph.all_nodes())


def dynamic_shapes(signature: Signature) -> tuple[dict[int, str], ...]:
    """Per input the axes that are symbolic, as ``torch.onnx.export`` wants them.

    Every such axis is free, that of ``2*batch`` or ``height*width/64`` too: torch.export derives no dim from a product
    of others, but finds from the operations that bring two tensors together how their axes are related.
    """
    return tuple({axis: dim for axis, dim in enumerate(spec.dims) if not dim.isdigit()} for spec in signature.inputs)


def _no_cache_of_fake_results() -> AbstractContextManager[None]:
    """With symbolic sizes, looking a result up takes longer than computing it: a sixth of the time is saved."""
    patched: AbstractContextManager[None] = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    return patched


def slices_stay() -> AbstractContextManager[Any]:
    """Keeps the optimizer from looking for two Slices that are one Split.

    It tries every pair of nodes, most of its time on a large network (``benchmarks/optimizer_times.py``), and finds
    none: its Slices have no step, those of ``torch.onnx`` do.
    """
    return patch.object(slice_split_rule, "try_rewrite", return_value=None)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    # The exporter warns about its own internals, and about a missing torchvision, on every call.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

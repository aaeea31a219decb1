"""Graphs with nodes of ours: their functions, their precision, and what tracing them needs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from saishiki.export import half_graph as half_graph_module
from saishiki.export.functions import FP32_OPERANDS, add_functions, translation_table
from saishiki.export.half_graph import half_graph
from saishiki.export.onnx_graph import trace, write_graph
from saishiki.kernels.masked_split_cross_attention import masked_split_cross_attention
from saishiki.runtime.signature import Signature, TensorSpec
from tests.export.functions.calls import THRESHOLD, draw, run_graph

TOKENS = ("batch", "tokens", "16")
SIGNATURE = Signature(
    inputs=(
        TensorSpec("x", "float32", TOKENS),
        TensorSpec("context", "float32", ("batch", "keys", "16")),
        TensorSpec("mask", "float32", ("batch", "1", "height", "width")),
    ),
    outputs=(TensorSpec("y", "float32", TOKENS),),
    multiples={},
)
SIZES = {"batch": 2, "tokens": 12, "keys": 10, "height": 6, "width": 8}


class Layer(torch.nn.Module):
    """Split cross-attention whose mask is resized and inverted on its way: fp16 could round it in three places."""

    def forward(self, x: Any, context: Any, mask: Any) -> Any:
        small = torch.nn.functional.interpolate(mask, scale_factor=0.5, mode="bicubic", recompute_scale_factor=False)
        share = (1.0 - small).flatten(1)
        out = masked_split_cross_attention(
            x + share[..., None], context, context, share, heads=2, selection="foreground_above", threshold=THRESHOLD
        )
        return out * 0.5


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return trace(Layer(), SIGNATURE, SIZES)


def near_the_threshold() -> dict[str, Any]:
    """Constant masks, one per row, that fp16 rounds across the threshold or onto it; other sizes than were traced."""
    steps = torch.arange(-3, 4) * 2.0**-20
    mask = (1.0 - (THRESHOLD + steps))[:, None, None, None].expand(-1, 1, 10, 12)
    return {"x": draw(7, 30, 16, seed=0), "context": draw(7, 14, 16, seed=1), "mask": mask.contiguous()}


def outputs(model: ir.Model, folder: Path) -> Any:
    (y,) = run_graph(write_graph(model, SIGNATURE, folder / "graph.onnx").path, near_the_threshold()).values()
    return y


def test_the_mask_stays_fp32_on_its_whole_way(model: ir.Model) -> None:
    half = half_graph(model, keep_fp32=())
    (node,) = (node for node in half.graph if node.domain == "saishiki")
    kinds = {value.name: value.dtype for value in node.inputs}
    assert [value.dtype for value in node.inputs[:3]] == [ir.DataType.FLOAT16] * 3
    assert {node.inputs[index].dtype for index in FP32_OPERANDS[node.op_type]} == {ir.DataType.FLOAT}, kinds
    value = node.inputs[3]
    while (producer := value.producer()) is not None:
        assert value.dtype == ir.DataType.FLOAT
        assert producer.op_type != "Cast"
        operands = [operand for operand in producer.inputs if operand is not None and not operand.is_initializer()]
        (value,) = (operand for operand in operands if operand.dtype == ir.DataType.FLOAT)
    assert value is half.graph.inputs[2]


def test_the_fp16_graph_selects_as_the_fp32_graph_does(model: ir.Model, tmp_path: Path) -> None:
    half = half_graph(model, keep_fp32=())
    torch.testing.assert_close(outputs(half, tmp_path), outputs(model.clone(), tmp_path), atol=2e-3, rtol=2e-3)


def test_a_mask_rounded_on_its_way_is_seen(model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_graph_module, "_makers_of_fp32_operands", lambda graph: frozenset())
    rounded = outputs(half_graph(model, keep_fp32=()), tmp_path)
    assert (rounded - outputs(model.clone(), tmp_path)).abs().max() > 0.1


def test_write_graph_counts_attentions_within_functions(model: ir.Model, tmp_path: Path) -> None:
    written = write_graph(model.clone(), SIGNATURE, tmp_path / "graph.onnx")
    assert written.attentions == 1
    assert written.nodes == len(model.graph)


def test_add_functions_refuses_unknown_nodes() -> None:
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[1])
    node = ir.node("Sparkle", [x], domain="saishiki", name="star")
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23})
    with pytest.raises(ValueError, match=r"star: no function saishiki::Sparkle; expected one of \['MaskedSplit"):
        add_functions(ir.Model(graph, ir_version=10))


def test_add_functions_leaves_other_graphs_alone() -> None:
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[1])
    node = ir.node("Relu", [x])
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23}), ir_version=10)
    add_functions(model)
    assert (dict(model.functions), dict(model.opset_imports)) == ({}, {"": 23})


def test_the_kernels_are_not_needed_by_networks_without_them() -> None:
    script = """
import sys
from saishiki.export.functions import translation_table
assert translation_table() == {}
assert not [name for name in sys.modules if name.startswith("saishiki.kernels")]
"""
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False).returncode == 0


def test_translation_table_has_the_ops_that_are_imported() -> None:
    import saishiki.models.colorizediffusion.split_operators  # noqa: F401

    assert set(translation_table()) == {
        torch.ops.saishiki.masked_split_cross_attention.default,
        torch.ops.saishiki.merging_split_cross_attention.default,
        torch.ops.saishiki.split_projection.default,
    }

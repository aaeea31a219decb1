import getpass
import hashlib
import re
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import nn

from saishiki.export import onnx_graph
from saishiki.export.onnx_graph import OPSET, dynamic_shapes, trace, write_graph
from saishiki.runtime.signature import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "float32", ("batch", "4", "height", "width")),),
    outputs=(TensorSpec("y", "float32", ("batch", "8", "height", "width")),),
    multiples={},
)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU())
    path = tmp_path_factory.mktemp("graph") / "small.onnx"
    return module, write_graph(trace(module, SIGNATURE, {"batch": 2, "height": 8, "width": 12}), SIGNATURE, path)


def graphs_of(bundle):
    return sorted((bundle / "onnx").glob("*.onnx"))


def test_write_graph_writes_graph_and_weights(graph):
    _, written = graph
    assert written.path.name == "small.onnx"
    model = onnx.load(written.path)
    assert written.nodes == len(model.graph.node) == 3
    assert written.attentions == 0
    assert written.path.with_name("small.onnx.data").stat().st_size == 4 * 8 * 4 * 9


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 4, 5, 17)])
def test_trace_computes_the_same_at_other_sizes(graph, shape):
    module, written = graph
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    (got,) = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(got, module(x).numpy(), atol=1e-5)


@pytest.mark.parametrize(("context", "asked"), [(nullcontext, True), (onnx_graph.slices_stay, False)])
def test_the_optimizer_does_not_look_for_splits(context, asked, monkeypatch):
    rule = Mock(return_value=None)
    monkeypatch.setattr(slice_split_rule, "try_rewrite", rule)
    monkeypatch.setattr(onnx_graph, "slices_stay", context)
    trace(nn.SiLU(), SIGNATURE, {"batch": 2, "height": 8, "width": 12})
    assert rule.called == asked


def test_dynamic_shapes():
    signature = Signature((TensorSpec("a", "float32", ("batch", "3", "height/8")),), (), {})
    assert dynamic_shapes(signature) == ({0: "batch", 2: "height/8"},)


def test_graphs_have_the_interface_of_their_signature(smallest_export):
    for path in graphs_of(smallest_export.bundle):
        graph = onnx.load(path, load_external_data=False).graph
        signature = smallest_export.manifest.modules[path.name.split(".")[0]].signature
        for values, specs in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
            found = [
                (
                    value.name,
                    onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
                    tuple(d.dim_param or str(d.dim_value) for d in value.type.tensor_type.shape.dim),
                )
                for value in values
            ]
            assert found == [(spec.name, np.dtype(spec.dtype), spec.dims) for spec in specs]


def test_graphs_pass_the_checker_and_shape_inference(smallest_export):
    paths = graphs_of(smallest_export.bundle)
    assert [path.name for path in paths] == ["denoiser.fp16.onnx", "denoiser.fp32.onnx", "time_projection.fp32.onnx"]
    for path in paths:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True)
        known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
        made = {name for node in model.graph.node for name in node.output}
        assert made <= known
        assert [opset.version for opset in model.opset_import if opset.domain == ""] == [OPSET]


def test_the_denoiser_keeps_its_attention_in_one_operator(smallest_export):
    for precision in ("fp32", "fp16"):
        model = onnx.load(smallest_export.bundle / "onnx" / f"denoiser.{precision}.onnx", load_external_data=False)
        operators = [node.op_type for node in model.graph.node]
        assert operators.count("Attention") == 1
        assert operators.count("Conv") == 4 * 2 + 1 + 2 + 1


def test_half_graph_is_half_inside_and_fp32_outside(smallest_export):
    model = onnx.load(smallest_export.bundle / "onnx" / "denoiser.fp16.onnx", load_external_data=False)
    floats = [t.data_type for t in model.graph.initializer if t.data_type in (onnx.TensorProto.FLOAT, 10)]
    assert set(floats) == {onnx.TensorProto.FLOAT16}
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {1}


def digests(bundle):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (bundle / "onnx").iterdir()}


def test_graphs_are_the_same_bytes_in_another_process(smallest_export, exported_by_command):
    """Another process, another hash seed, another working directory, another output."""
    assert len(digests(smallest_export.bundle)) == 6
    assert digests(exported_by_command.bundle) == digests(smallest_export.bundle)


def test_graphs_tell_nothing_about_the_machine(smallest_export):
    paths = rb"(?:/(?:home|root|tmp|usr|opt|var|work|mnt)/|\.py\b|site-packages)"
    secrets = [str(Path.home()) + "/", str(Path.cwd()), str(smallest_export.bundle.parent), f"/{getpass.getuser()}/"]
    for path in graphs_of(smallest_export.bundle):
        content = path.read_bytes()
        assert re.findall(paths, content) == []
        assert [secret for secret in secrets if secret.encode() in content] == []

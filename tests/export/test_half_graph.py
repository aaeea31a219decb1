"""The fp16 twin of a graph: which operators and dtypes it has, and what it computes."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from saishiki.export.half_graph import half_graph
from saishiki.export.onnx_graph import trace
from saishiki.runtime.signature import Signature, TensorSpec

IMAGE = ("batch", "32", "height", "width")
SIGNATURE = Signature((TensorSpec("x", "float32", IMAGE),), (TensorSpec("y", "float32", IMAGE),), {})
SIZES = {"batch": 2, "height": 8, "width": 12}


class Block(nn.Module):
    """A convolution whose output overflows fp16, and a norm that brings it back into range."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 32, 3, padding=1)
        self.norm = nn.GroupNorm(32, 32)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) * self.gain * self.gain)


class Network(nn.Module):
    """Two blocks and an upsampling that is undone."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Block(gain), Block(1.0)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.interpolate(self.first(x), scale_factor=2.0, mode="nearest")
        return self.second(nn.functional.avg_pool2d(h, 2))


def outputs_of(model: ir.Model, x: np.ndarray, folder: Path) -> np.ndarray:
    path = folder / "model.onnx"
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    (y,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    return y


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 32, 8, 12), dtype=np.float32)


@pytest.fixture(scope="module")
def traced() -> ir.Model:
    return trace(Network(1.0), SIGNATURE, SIZES)


@pytest.fixture(scope="module")
def overflowing() -> ir.Model:
    return trace(Network(1e3), SIGNATURE, SIZES)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_half_graph_has_the_same_operators_and_two_casts(traced: ir.Model) -> None:
    half = half_graph(traced, keep_fp32=())
    assert operators(half) - operators(traced) == Counter({"Cast": 2})
    assert operators(traced) - operators(half) == Counter()


def test_half_graph_computes_in_fp16_between_fp32_borders(traced: ir.Model) -> None:
    half = half_graph(traced, keep_fp32=())
    (given,), (result,) = half.graph.inputs, half.graph.outputs
    assert given.dtype == result.dtype == ir.DataType.FLOAT
    convolutions = [node for node in half.graph if node.op_type == "Conv"]
    assert {value.dtype for node in convolutions for value in (*node.inputs, *node.outputs)} == {ir.DataType.FLOAT16}


def test_half_graph_keeps_the_scales_of_a_resize_in_fp32(traced: ir.Model) -> None:
    (resize,) = (node for node in half_graph(traced, keep_fp32=()).graph if node.op_type == "Resize")
    assert [value.dtype for value in resize.inputs if value] == [ir.DataType.FLOAT16, ir.DataType.FLOAT]


def test_half_graph_is_as_far_from_fp32_as_fp16_rounding(traced: ir.Model, x: np.ndarray, tmp_path: Path) -> None:
    want = outputs_of(traced, x, tmp_path)
    got = outputs_of(half_graph(traced, keep_fp32=()), x, tmp_path)
    assert 0 < np.linalg.norm(got - want) / np.linalg.norm(want) < 2e-3


def test_half_graph_leaves_the_fp32_graph_as_it_was(traced: ir.Model, x: np.ndarray, tmp_path: Path) -> None:
    before = outputs_of(traced, x, tmp_path)
    half_graph(traced, keep_fp32=("first",))
    half_graph(traced, keep_fp32=())
    np.testing.assert_array_equal(outputs_of(traced, x, tmp_path), before)


def test_half_graph_drops_the_fp32_weights(traced: ir.Model) -> None:
    weights = half_graph(traced, keep_fp32=()).graph.initializers.values()
    assert {value.dtype for value in weights if len(value.shape or ()) == 4} == {ir.DataType.FLOAT16}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_half_graph_overflows_without_islands(overflowing: ir.Model, x: np.ndarray) -> None:
    # ONNX Runtime computes fp16 in fp32 on a CPU, and so would not overflow; the reference evaluator does.
    model = ir.to_proto(half_graph(overflowing, keep_fp32=()))
    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    assert not np.isfinite(y).all()


def test_half_graph_keeps_the_names_of_weights(traced: ir.Model) -> None:
    weights = half_graph(traced, keep_fp32=("second",)).graph.initializers
    assert weights["first.conv.weight"].dtype == ir.DataType.FLOAT16
    assert weights["second.conv.weight"].dtype == ir.DataType.FLOAT


def test_half_graph_keeps_a_submodule_in_fp32(overflowing: ir.Model, x: np.ndarray, tmp_path: Path) -> None:
    half = half_graph(overflowing, keep_fp32=("first",))
    dtypes = [node.outputs[0].dtype for node in half.graph if node.op_type == "Conv"]
    assert dtypes == [ir.DataType.FLOAT, ir.DataType.FLOAT16]
    want = outputs_of(overflowing, x, tmp_path)
    got = outputs_of(half, x, tmp_path)
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 2e-3


def test_half_graph_of_a_name_does_not_keep_names_that_begin_with_it(traced: ir.Model) -> None:
    half = half_graph(traced, keep_fp32=("fir",))
    assert operators(half) == operators(half_graph(traced, keep_fp32=()))


def test_half_graph_that_keeps_everything_is_the_fp32_graph(traced: ir.Model, x: np.ndarray, tmp_path: Path) -> None:
    kept = half_graph(traced, keep_fp32=("",))
    assert operators(kept) == operators(traced)
    np.testing.assert_array_equal(outputs_of(kept, x, tmp_path), outputs_of(traced, x, tmp_path))


def test_half_graph_refuses_a_weight_beyond_fp16_when_it_is_written() -> None:
    network = Network(1.0)
    network.second.conv.weight.data[0, 0, 0, 0] = 1e5
    half = half_graph(trace(network, SIGNATURE, SIZES), keep_fp32=())
    with pytest.raises(ValueError, match=r"second\.conv\.weight holds 100000, more than fp16 can; keep its module in"):
        half.graph.initializers["second.conv.weight"].const_value.numpy()


def filled(operator: str, **attributes: Any) -> ir.Model:
    shape = ir.Value(name="shape", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    node = ir.node(operator, [shape], attributes, name="made")
    node.outputs[0].name, node.outputs[0].type = "out", ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(ir.Graph([shape], node.outputs, nodes=[node], opset_imports={"": 23}), ir_version=10)


@pytest.mark.parametrize(("attributes", "fill"), [({}, 0.0), ({"value": ir.tensor(np.array([1.5], np.float32))}, 1.5)])
def test_half_graph_fills_in_fp16(attributes: dict[str, Any], fill: float) -> None:
    (node, cast) = half_graph(filled("ConstantOfShape", **attributes), keep_fp32=()).graph
    value = node.attributes["value"].as_tensor()
    assert (value.dtype, value.numpy().item()) == (ir.DataType.FLOAT16, fill)
    assert (cast.op_type, cast.outputs[0].name) == ("Cast", "out")


def test_half_graph_refuses_operators_that_state_their_dtype() -> None:
    model = filled("EyeLike")
    with pytest.raises(ValueError, match="made: EyeLike states its dtype itself"):
        half_graph(model, keep_fp32=())

"""The node of the split projection and its function: what it holds, and what engines compute with it."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from saishiki.export.engines import Target, build_engine
from saishiki.export.functions.split_projection import SPLIT_PROJECTION
from saishiki.kernels.split_projection import split_projection, split_projection_reference
from saishiki.runtime.signature import Profile, Signature, TensorSpec
from tests.export.functions.calls import THRESHOLD, draw, excess, masks, run_graph, traced, written

CALLS: dict[str, dict[str, Any]] = {
    "above": {"selection": "foreground_above"},
    "below": {"selection": "background_below"},
}
DIMS = {
    "x": ("batch", "tokens", "40"),
    "w_fg": ("24", "40"),
    "w_bg": ("24", "40"),
    "mask": ("batch", "tokens"),
}
OUT = ("batch", "tokens", "24")
SIGNATURE = Signature(
    tuple(TensorSpec(name, "float32", dims) for name, dims in DIMS.items()),
    tuple(TensorSpec(name, "float32", OUT) for name in CALLS),
    {},
)
SIZES = {"batch": 2, "tokens": 12}


def call_op(tensors: tuple[Any, ...], **options: Any) -> Any:
    return split_projection(*tensors, threshold=THRESHOLD, **options)


def reference(*tensors: Any, **options: Any) -> Any:
    return split_projection_reference(*tensors, threshold=THRESHOLD, **options)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By precision: a graph with one node per rule."""
    model, folder = traced(call_op, CALLS, SIGNATURE, SIZES), tmp_path_factory.mktemp("split")
    return {precision: written(model, SIGNATURE, folder, precision) for precision in ("fp32", "fp16")}


def draw_tensors() -> dict[str, Any]:
    """All but the mask."""
    shapes = {"x": (3, 35, 40), "w_fg": (24, 40), "w_bg": (24, 40)}
    return {name: draw(*shape, seed=seed, mean=0.5) for seed, (name, shape) in enumerate(shapes.items())}


def test_a_call_is_one_node(graphs: dict[str, Path]) -> None:
    for path in graphs.values():
        model = onnx.load(path)
        nodes = [node.op_type for node in model.graph.node if node.domain == "saishiki"]
        assert nodes == [function.name for function in model.functions] * 2 == ["SplitProjection"] * 2


def test_it_is_two_products_and_a_choice() -> None:
    operators = Counter(node.op_type for node in SPLIT_PROJECTION.function())
    assert (operators["MatMul"], operators["Where"]) == (2, 1)


@pytest.mark.parametrize("mask", list(masks(3, 5, 7)))
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_compute_what_the_op_computes(graphs: dict[str, Path], precision: str, mask: str) -> None:
    tensors = draw_tensors() | {"mask": masks(3, 5, 7)[mask]}
    got = run_graph(graphs[precision], tensors)
    ordered = list(tensors.values())
    taken = {name: excess(got[name], reference, ordered, precision, **call) for name, call in CALLS.items()}
    assert max(taken.values()) <= 1, taken
    if mask in ("lines", "checkerboard"):
        swapped = [tensors[name] for name in ("x", "w_bg", "w_fg", "mask")]
        assert excess(got["above"], reference, swapped, precision, **CALLS["above"]) > 10


def test_the_rules_differ_at_the_threshold(graphs: dict[str, Path]) -> None:
    tensors = draw_tensors() | {"mask": torch.full((3, 35), THRESHOLD)}
    got = run_graph(graphs["fp32"], tensors)
    assert excess(got["above"], reference, list(tensors.values()), "fp32", **CALLS["below"]) > 10


def test_tensorrt_rtx_builds_it(graphs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'saishiki[rtx]'")
    profile = Profile(*({"batch": 2, "tokens": tokens} for tokens in (64, 256, 1024)))
    target = Target("tensorrt-rtx", "sm89")
    report = build_engine(
        graphs["fp16"], signature=SIGNATURE, profiles=(profile,), target=target, output=tmp_path / "engine"
    )
    assert report.layers >= 2

"""The node of masked split cross-attention and its functions: what they hold, and what engines compute with them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch

from saishiki.export.engines import Target, build_engine
from saishiki.export.functions.masked_split_cross_attention import FUNCTIONS, NAME
from saishiki.kernels.masked_split_cross_attention import (
    masked_split_cross_attention,
    masked_split_cross_attention_reference,
)
from saishiki.runtime.signature import Profile, Signature, TensorSpec
from tests.export.functions.calls import THRESHOLD, draw, excess, masks, run_graph, traced, written

HEADS, WIDTH = 2, 48
SCALES = {"fg_scale": 0.7, "bg_scale": 1.4, "reference_scale": 0.85}
# q_bg: whether the call has queries of the background; odd: whether it leaves a key out.
CALLS: dict[str, dict[str, Any]] = {
    "above": {"selection": "foreground_above"},
    "below": {"selection": "background_below"},
    "scales": {"selection": "foreground_above", **SCALES},
    "fg_tokens": {"selection": "background_below", "fg_tokens": 3, **SCALES},
    "fg_tokens_odd": {"selection": "foreground_above", "fg_tokens": 4, "odd": True},
    "two_queries": {"selection": "foreground_above", "q_bg": True, **SCALES},
    "two_queries_below": {"selection": "background_below", "q_bg": True},
    "merge": {"selection": "foreground_above", "merge_scale": 0.25, **SCALES},
    "merge_below": {"selection": "background_below", "merge_scale": 0.6, "q_bg": True},
    "merge_all": {"selection": "background_below", "merge_scale": 1.0, "fg_tokens": 5, "odd": True},
    "blend": {"selection": "blend"},
    "blend_merge": {"selection": "blend", "merge_scale": 0.3, "q_bg": True, **SCALES},
}
FORMS = {
    "above": "",
    "below": "",
    "scales": "",
    "fg_tokens": "",
    "fg_tokens_odd": "",
    "two_queries": "TwoQueries",
    "two_queries_below": "TwoQueries",
    "merge": "Merge",
    "merge_below": "Merge",
    "merge_all": "Merge",
    "blend": "Blend",
    "blend_merge": "Blend",
}
TENSORS = ("q", "q_bg", "k", "v", "mask")
SIZES = {"batch": 2, "tokens": 12, "keys": 10}
OTHER_SIZES = {"batch": 3, "tokens": 35, "keys": 22}


def call_op(
    tensors: tuple[Any, ...],
    *,
    op: Callable[..., Any] = masked_split_cross_attention,
    q_bg: bool = False,
    odd: bool = False,
    **options: Any,
) -> Any:
    q, other_q, k, v, mask = tensors
    if odd:
        k, v = k[:, 1:].contiguous(), v[:, 1:].contiguous()
    options = {"heads": HEADS, "threshold": THRESHOLD, "q_bg": other_q if q_bg else None, **options}
    return op(q, k, v, mask, **options)


def reference(*tensors: Any, **options: Any) -> Any:
    return call_op(tensors, op=masked_split_cross_attention_reference, **options)


def signature_of(calls: Any, *, width: int = WIDTH, static: dict[str, int] | None = None) -> Signature:
    dims = {name: str((static or {}).get(name, name)) for name in SIZES}
    queries, keys = ((dims["batch"], dims[name], str(width)) for name in ("tokens", "keys"))
    shapes = {"q": queries, "q_bg": queries, "k": keys, "v": keys, "mask": queries[:2]}
    inputs = tuple(TensorSpec(name, "float32", shapes[name]) for name in TENSORS)
    return Signature(inputs, tuple(TensorSpec(name, "float32", queries) for name in calls), {})


def draw_tensors(sizes: dict[str, int], *, mean: float = 0.0) -> dict[str, Any]:
    """All but the mask."""
    batch, tokens, keys = (sizes[name] for name in ("batch", "tokens", "keys"))
    lengths = {"q": tokens, "q_bg": tokens, "k": keys, "v": keys}
    return {
        name: draw(batch, length, WIDTH, seed=seed, mean=mean) for seed, (name, length) in enumerate(lengths.items())
    }


Graphs = dict[tuple[str, str], Path]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """By precision and kind of shapes: a graph with one node and one output per call."""
    found: Graphs = {}
    for kind, static in (("dynamic", None), ("static", OTHER_SIZES)):
        signature = signature_of(CALLS, static=static)
        model = traced(call_op, CALLS, signature, static or SIZES)
        folder = tmp_path_factory.mktemp(kind)
        found |= {(precision, kind): written(model, signature, folder, precision) for precision in ("fp32", "fp16")}
    return found


def nodes_of(path: Path) -> list[Any]:
    return [node for node in onnx.load(path).graph.node if node.domain == "saishiki"]


def test_a_call_is_one_node(graphs: Graphs) -> None:
    for path in graphs.values():
        model = onnx.load(path)
        made = {output: node for node in model.graph.node for output in node.output}
        assert len(nodes_of(path)) == len(CALLS)
        for name, form in FORMS.items():
            output = name if name in made and made[name].domain == "saishiki" else f"{name}.half"
            assert (made[output].domain, made[output].op_type) == ("saishiki", NAME + form)
        assert sorted(function.name for function in model.functions) == sorted(f.name for f in FUNCTIONS)
        assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 23), ("saishiki", 1)}


def operators_of(name: str) -> Counter[str]:
    (function,) = (function.function() for function in FUNCTIONS if function.name == name)
    return Counter(node.op_type for node in function)


@pytest.mark.parametrize(("form", "selects"), [("", 0), ("TwoQueries", 1)])
def test_one_pass_is_one_attention(form: str, selects: int) -> None:
    operators = operators_of(NAME + form)
    assert (operators["Attention"], operators["MatMul"], operators["Softmax"]) == (1, 0, 0)
    # Of the bias and of the row's scale, and of the query where there are two.
    assert operators["Where"] == 2 + selects


@pytest.mark.parametrize("form", ["Merge", "Blend"])
def test_two_passes_are_decomposed(form: str) -> None:
    operators = operators_of(NAME + form)
    assert (operators["Attention"], operators["MatMul"], operators["Softmax"]) == (0, 4, 2)
    assert operators["Where"] == 0


def test_functions_are_the_same_every_time() -> None:
    for function in FUNCTIONS:
        first, second = (onnx_function(function) for _ in range(2))
        assert first.SerializeToString() == second.SerializeToString()


def onnx_function(function: Any) -> Any:
    return ir.serde.serialize_function(function.function())


MASKS = ("empty", "full", "lines", "checkerboard", "per row", "near the threshold", "beyond 0 and 1")


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_compute_what_the_op_computes(graphs: Graphs, precision: str, kind: str, mask: str) -> None:
    tensors = draw_tensors(OTHER_SIZES) | {"mask": masks(3, 5, 7)[mask]}
    got = run_graph(graphs[precision, kind], tensors)
    taken = {
        name: excess(got[name], reference, [tensors[t] for t in TENSORS], precision, **call)
        for name, call in CALLS.items()
    }
    assert max(taken.values()) <= 1, taken


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_compute_a_large_mean(graphs: Graphs, precision: str) -> None:
    tensors = draw_tensors(OTHER_SIZES, mean=3.0) | {"mask": masks(3, 5, 7)["per row"]}
    got = run_graph(graphs[precision, "dynamic"], tensors)
    ordered = [tensors[name] for name in TENSORS]
    assert all(excess(got[name], reference, ordered, precision, **call) <= 1 for name, call in CALLS.items())


def test_the_rules_differ_at_the_threshold(graphs: Graphs) -> None:
    tensors = draw_tensors(OTHER_SIZES) | {"mask": torch.full((3, 35), THRESHOLD)}
    got = run_graph(graphs["fp16", "dynamic"], tensors)
    ordered = [tensors[name] for name in TENSORS]
    assert excess(got["above"], reference, ordered, "fp16", **CALLS["above"]) <= 1
    assert excess(got["above"], reference, ordered, "fp16", **CALLS["below"]) > 10


@pytest.mark.parametrize("name", CALLS)
def test_swapped_regions_are_seen(graphs: Graphs, name: str) -> None:
    tensors = draw_tensors(OTHER_SIZES) | {"mask": masks(3, 5, 7)["lines"]}
    got = run_graph(graphs["fp16", "dynamic"], tensors)
    swapped = [tensors[t].flip(1) if t in "kv" else tensors[t] for t in TENSORS]
    assert excess(got[name], reference, swapped, "fp16", **CALLS[name]) > 10


def test_zero_contexts_give_zeros(graphs: Graphs) -> None:
    tensors = draw_tensors(OTHER_SIZES) | {"mask": masks(3, 5, 7)["checkerboard"]}
    for name in "kv":
        tensors[name][1] = 0
    for output in run_graph(graphs["fp16", "dynamic"], tensors).values():
        assert not output[1].any()
        assert output[0].any()


@pytest.mark.parametrize("name", ["above", "two_queries", "merge"])
def test_a_mask_rounded_to_fp16_is_seen(graphs: Graphs, name: str) -> None:
    """Tokens near the threshold change sides."""
    model = onnx.load(graphs["fp16", "dynamic"])
    casts = [
        onnx.helper.make_node("Cast", ["mask"], ["mask.rounded"], to=onnx.TensorProto.FLOAT16),
        onnx.helper.make_node("Cast", ["mask.rounded"], ["mask.back"], to=onnx.TensorProto.FLOAT),
    ]
    for node in model.graph.node:
        node.input[:] = ["mask.back" if value == "mask" else value for value in node.input]
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    tensors = draw_tensors(OTHER_SIZES) | {"mask": masks(3, 5, 7)["near the threshold"]}
    got = run_graph(model.SerializeToString(), tensors)
    assert excess(got[name], reference, [tensors[t] for t in TENSORS], "fp16", **CALLS[name]) > 10


def test_scales_may_be_inputs_of_the_graph(graphs: Graphs) -> None:
    """A family can leave them to run time without another trace."""
    model = onnx.load(graphs["fp32", "dynamic"])
    (node,) = (node for node in model.graph.node if list(node.output) == ["merge"])
    (function,) = (function for function in FUNCTIONS if function.name == node.op_type)
    names = {name: node.input[list(function.inputs).index(name)] for name in ("merge_scale", "threshold", "bg_scale")}
    # Equal constants are shared: give this node values of its own.
    for name in names:
        node.input[list(function.inputs).index(name)] = name
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ()))
    tensors = draw_tensors(OTHER_SIZES) | {"mask": masks(3, 5, 7)["beyond 0 and 1"]}
    scales = {"merge_scale": 0.5, "threshold": -0.5, "bg_scale": 0.3}
    got = run_graph(model.SerializeToString(), tensors | {name: torch.tensor(scales[name]) for name in scales})
    ordered = [tensors[name] for name in TENSORS]
    assert excess(got["merge"], reference, ordered, "fp32", **{**CALLS["merge"], **scales}) <= 1
    assert excess(got["merge"], reference, ordered, "fp32", **CALLS["merge"]) > 10


def test_kv_index_is_refused() -> None:
    def call(tensors: tuple[Any, ...]) -> Any:
        return call_op(tensors, selection="blend", kv_index=tensors[-1][:, 0].int())

    with pytest.raises(RuntimeError, match="Failed to convert") as caught:
        traced(call, {"out": {}}, signature_of(("out",)), SIZES)
    causes: list[BaseException | None] = [caught.value]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__)
    assert any("expected no kv_index in an exported graph" in str(cause) for cause in causes)


def build(calls: dict[str, dict[str, Any]], folder: Path) -> Any:
    """A TensorRT-RTX engine for SM89 of residual layers, one per call."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'saishiki[rtx]'")
    width = 128
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(4 * len(calls)))

    def network(tensors: tuple[Any, ...]) -> Any:
        x, other_x, k, v, mask = tensors
        for index, call in enumerate(calls.values()):
            to_q, to_q_bg, to_k, to_v = layers[4 * index : 4 * index + 4]
            x = x + call_op((to_q(x), to_q_bg(x + other_x), to_k(k), to_v(v), mask), **call)
        return x

    signature = signature_of(("y",), width=width)
    path = written(traced(network, {"y": {}}, signature, SIZES), signature, folder, "fp16")
    sizes = [{"batch": 2, "tokens": tokens, "keys": 392} for tokens in (64, 256, 1024)]
    target = Target("tensorrt-rtx", "sm89")
    return build_engine(path, signature=signature, profiles=(Profile(*sizes),), target=target, output=folder / "engine")


def test_tensorrt_rtx_fuses_every_attention(tmp_path: Path) -> None:
    calls = {name: CALLS[name] for name in ("scales", "two_queries", "merge", "blend_merge")}
    report = build(calls, tmp_path)
    assert (report.attention_ops, report.unfused_attentions) == (2, 0)
    # One per call of a single pass, two per call of two.
    assert report.fused_attentions == 1 + 1 + 2 + 2


def test_tensorrt_rtx_confuses_overloads(tmp_path: Path) -> None:
    """Why every form has a name of its own; where this is mended, overloads are the better way to say it."""
    trt: Any = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'saishiki[rtx]'")
    helper = onnx.helper
    opset = [helper.make_opsetid("", 23), helper.make_opsetid("saishiki", 1)]
    bodies = {name: helper.make_node(op, ["x"], ["y"]) for name, op in (("first", "Relu"), ("second", "Neg"))}
    functions = [
        helper.make_function("saishiki", "F", ["x"], ["y"], [body], opset[:1], overload=name)
        for name, body in bodies.items()
    ]
    nodes = [
        helper.make_node("F", ["x"], ["h"], domain="saishiki", overload="first"),
        helper.make_node("F", ["h"], ["y"], domain="saishiki", overload="second"),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, functions=functions, opset_imports=opset, ir_version=10).SerializeToString()
    (y,) = run_graph(model, {"x": torch.tensor([1.0, -2.0])}).values()
    assert y.tolist() == [-1.0, 0.0]
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    assert trt.OnnxParser(network, logger).parse(model)
    types = [network.get_layer(index).type for index in range(network.num_layers)]
    if len(set(types)) > 1:
        pytest.skip(f"TensorRT-RTX {trt.__version__} tells overloads apart")
    assert len(types) == 2

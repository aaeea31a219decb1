"""Operations and bytes of ONNX graphs, against brute force and against torch's own counter."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graph_roofline import ceilings as ceilings_module
from graph_roofline.ceilings import MeasuredCeilings, floor_of, higher, measured_ceilings
from graph_roofline.layers import Layer, layers_of
from graph_roofline.node_work import graph_works, total
from graph_roofline.onnxruntime_times import OTHER, LayerTimes, kernel_owners, layer_times
from graph_roofline.report import (
    FARTHEST,
    PROJECTION,
    counted,
    farthest,
    floors_report,
    layer_rows,
    profile_report,
    projections,
    roofline_report,
)
from graph_roofline.sized_graph import SizedGraph, sized_graph, sized_model
from onnx import TensorProto, helper
from roofline import GPUS, Work, roofline_on
from torch.utils.flop_counter import FlopCounterMode

from saishiki.models import LoadOptions, read_checkpoint, recognize
from saishiki.runtime.bundle import Bundle

FLOAT = TensorProto.FLOAT
SIZES = {"batch": 1, "height": 32, "width": 32}


def ceilings(bandwidth: float, matrix_flops: float) -> MeasuredCeilings:
    """One copy and one product."""
    return MeasuredCeilings({1 << 20: bandwidth}, {"a product": matrix_flops})


def graph_of(
    path: Path, nodes: list[Any], inputs: dict[str, list[Any]], weights: dict[str, Any], functions: Any = ()
) -> SizedGraph:
    """A written and read graph whose output is that of the last node, at a batch of 2."""
    values = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()]
    output = helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)
    stored = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", values, [output], stored)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("saishiki", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    onnx.save(model, path)
    return sized_graph(sized_model(path, {"batch": 2}))


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    made: onnx.NodeProto = helper.make_node(op, inputs.split(), [output], name=output, **attributes)
    return made


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def multiply_adds(batch: int, out: tuple[int, ...], weight: tuple[int, ...]) -> Iterator[int]:
    """One for every product of a convolution, padding included."""
    for _ in itertools.product(range(batch), *map(range, out), *map(range, weight[1:])):
        yield 1


@pytest.mark.parametrize(
    ("attributes", "weight", "out"),
    [
        ({"pads": [1, 1, 1, 1]}, (4, 6, 3, 3), (4, 5, 7)),
        ({"strides": [2, 2], "pads": [1, 1, 1, 1]}, (4, 6, 3, 3), (4, 3, 4)),
        ({"group": 2}, (4, 3, 1, 1), (4, 5, 7)),
    ],
    ids=["padded", "strided", "grouped"],
)
def test_convolution_counts_as_brute_force(tmp_path: Path, attributes: Any, weight: Any, out: Any) -> None:
    nodes = [node("Conv", "x w b", "y", **attributes)]
    graph = graph_of(tmp_path / "g.onnx", nodes, {"x": ["batch", 6, 5, 7]}, {"w": ones(*weight), "b": ones(4)})
    (work,) = graph_works(graph)
    assert work.matrix_flops == 2 * sum(multiply_adds(2, out, weight))
    assert work.vector_flops == 2 * math.prod(out)
    assert work.nbytes == 4 * (2 * 6 * 5 * 7 + math.prod(weight) + 4 + 2 * math.prod(out))


def test_matrix_products_and_attention_count_as_torch_does(tmp_path: Path) -> None:
    inputs = {"a": ["batch", 3, 5, 8], "b": ["batch", 3, 8, 6], "q": ["batch", 3, 5, 8], "k": ["batch", 3, 7, 8]}
    nodes = [node("MatMul", "a b", "m"), node("Attention", "q k k", "o")]
    graph = graph_of(tmp_path / "g.onnx", nodes, inputs, {})
    with FlopCounterMode(display=False) as counter:
        torch.rand(2, 3, 5, 8) @ torch.rand(2, 3, 8, 6)
    product, attention = graph_works(graph)
    assert product.matrix_flops == counter.get_total_flops()
    assert attention.matrix_flops == 2 * 2 * 3 * 5 * 7 * (8 + 8)
    assert attention.nbytes == 4 * 2 * 3 * 8 * (5 + 7 + 5)  # k is v, so it is read once; no score leaves the chip


def test_gemm_counts_its_inner_dim_when_transposed(tmp_path: Path) -> None:
    nodes = [node("Gemm", "a b c", "y", transA=1)]
    graph = graph_of(tmp_path / "g.onnx", nodes, {"a": [7, "batch"]}, {"b": ones(7, 3), "c": ones(3)})
    assert graph_works(graph)[0].matrix_flops == 2 * 2 * 7 * 3


@pytest.mark.parametrize(
    ("made", "vector", "nbytes"),
    [
        (node("Add", "x x", "y"), 96, 4 * 2 * 96),
        (node("GroupNormalization", "x s s", "y", num_groups=2), 7 * 96, 4 * (2 * 96 + 4)),
        (node("Resize", "x  scales", "y", mode="nearest"), 0, 4 * (96 + 4 + 4 * 96)),
        (node("AveragePool", "x", "y", kernel_shape=[2, 2], strides=[2, 2]), 96, 4 * (96 + 24)),
        (node("Concat", "x x", "y", axis=1), 0, 4 * 3 * 96),
        (node("Slice", "x from to", "y"), 0, 2 * 4 * 48),
        (node("Flatten", "x", "y"), 0, 0),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_other_operators(tmp_path: Path, made: onnx.NodeProto, vector: int, nbytes: int) -> None:
    if made.op_type == "Resize":
        del made.input[:]
        made.input.extend(["x", "", "scales"])
    stored = {"s": ones(4), "scales": np.array([1, 1, 2, 2], np.float32)}
    stored |= {"from": np.array([0]), "to": np.array([1])}
    graph = graph_of(tmp_path / "g.onnx", [made], {"x": ["batch", 4, 2, 6]}, stored)
    (work,) = graph_works(graph)
    assert (work.matrix_flops, work.vector_flops, work.nbytes) == (0, vector, nbytes)


def test_an_unknown_operator_is_an_error(tmp_path: Path) -> None:
    graph = graph_of(tmp_path / "g.onnx", [node("Det", "x", "y")], {"x": ["batch", 4, 4]}, {})
    with pytest.raises(ValueError, match=r"y: no count for the operator Det; counted are .*Conv.*node_work\.py"):
        graph_works(graph)


def test_a_dim_without_a_size_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x has a dim 'width', but the sizes are"):
        graph_of(tmp_path / "g.onnx", [node("Relu", "x", "y")], {"x": ["batch", "width"]}, {})


def test_a_shape_that_depends_on_values_is_an_error(tmp_path: Path) -> None:
    nodes = [node("NonZero", "x", "i"), node("Cast", "i", "y", to=FLOAT)]
    with pytest.raises(ValueError, match="i: the shape of its 'i' does not follow from the sizes"):
        graph_of(tmp_path / "g.onnx", nodes, {"x": ["batch", 4]}, {})


def test_shape_arithmetic_is_computed(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Slice", "s from to", "head"),
        node("Concat", "head rest", "t", axis=0),
        node("Reshape", "x t", "y"),
        node("Relu", "y", "z"),
    ]
    constants = {"from": np.array([0]), "to": np.array([1]), "rest": np.array([-1])}
    graph = graph_of(tmp_path / "g.onnx", nodes, {"x": ["batch", 3, 5]}, constants)
    assert [(each.op, each.outputs[0].shape) for each in graph.nodes] == [("Reshape", (2, 15)), ("Relu", (2, 15))]


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    body = [node("MatMul", "a b", "m"), node("Relu", "m", "r")]
    opset = [helper.make_opsetid("", 23)]
    function = helper.make_function("saishiki", "dense", ["a", "b"], ["r"], body, opset)
    call = helper.make_node("dense", ["x", "w"], ["y"], domain="saishiki", name="call")
    graph = graph_of(tmp_path / "g.onnx", [call], {"x": ["batch", 8]}, {"w": ones(8, 3)}, [function])
    assert [each.op for each in graph.nodes] == ["MatMul", "Relu"]
    assert total(graph_works(graph)).matrix_flops == 2 * 2 * 8 * 3


def layers_by_name(tmp_path: Path, nodes: list[Any]) -> dict[str, Layer]:
    stored = {"w": ones(4, 4, 1, 1), "s": ones(4)}
    graph = graph_of(tmp_path / "g.onnx", nodes, {"x": ["batch", 4, 5, 5]}, stored)
    return {layer.name: layer for layer in layers_of(graph)}


IMAGE, WEIGHT, SCALES = 4 * 2 * 4 * 25, 4 * 16, 2 * 4 * 4


def test_what_touches_a_convolution_is_in_its_layer(tmp_path: Path) -> None:
    nodes = [
        node("GroupNormalization", "x s s", "n", num_groups=2),
        node("Sigmoid", "n", "g"),
        node("Mul", "n g", "a"),
        node("Conv", "a w", "c"),
        node("Add", "c x", "y"),
    ]
    layers = layers_by_name(tmp_path, nodes)
    assert {name: layer.ops for name, layer in layers.items()} == {
        "n": ("GroupNormalization",),
        "c": ("Sigmoid", "Mul", "Conv", "Add"),
    }
    # The norm's result and the residual are read, the sum is written; nothing between them counts.
    assert layers["c"].work.nbytes == 3 * IMAGE + WEIGHT
    assert layers["c"].tensors == {"g", "a", "c", "y"}
    assert layers["n"].work.nbytes == 2 * IMAGE + SCALES // 2


def test_a_convolution_read_elsewhere_is_written_once(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "r"),
        node("GroupNormalization", "c s s", "n", num_groups=2),
        node("Concat", "r n", "y", axis=1),
    ]
    layers = layers_by_name(tmp_path, nodes)
    assert layers["c"].ops == ("Conv", "Relu")
    assert layers["c"].work.nbytes == 3 * IMAGE + WEIGHT


def test_layers_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """The sum needs the norm, and the norm needs the convolution: the sum cannot be a part of the convolution."""
    nodes = [
        node("Conv", "x w", "c"),
        node("GroupNormalization", "c s s", "n", num_groups=2),
        node("Add", "c n", "y"),
    ]
    layers = layers_by_name(tmp_path, nodes)
    assert {name: layer.ops for name, layer in layers.items()} == {
        "c": ("Conv",),
        "n": ("GroupNormalization",),
        "y": ("Add",),
    }


def test_views_are_names_of_the_same_tensor(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c"), node("Flatten", "c", "f"), node("Relu", "f", "y")]
    layers = layers_by_name(tmp_path, nodes)
    assert layers["c"].ops == ("Conv", "Relu")
    assert layers["c"].work.nbytes == 2 * IMAGE + WEIGHT
    assert layers["c"].tensors == {"c", "f", "y"}


def test_matrix_operations_are_those_that_torch_counts(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    checkpoint = read_checkpoint(tiny_checkpoint)
    model = recognize(checkpoint).load(checkpoint, LoadOptions())
    inputs = {spec.name: torch.zeros(spec.shape(SIZES)) for spec in model.signatures["denoiser"].inputs}
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.modules["denoiser"](**inputs)
    for precision in ("fp32", "fp16"):
        what = counted(Bundle.open(tiny_bundle), "denoiser", precision, SIZES)
        assert total([layer.work for layer in what.layers]).matrix_flops == counter.get_total_flops()


@pytest.mark.slow
def test_the_published_size_is_273_gflop(tmp_path: Path) -> None:
    """59 convolutions, 42 of them 3x3; 273.35 GFLOP at 256x256 by torch's counter."""
    from saishiki.export.onnx_graph import trace, write_graph
    from saishiki.models.animediffusion import CONFIGS, AnimeDiffusion, modules, signatures

    network = AnimeDiffusion(CONFIGS["published"]).eval()
    signature = signatures(network.config)["denoiser"]
    model = trace(modules(network)["denoiser"], signature, {"batch": 2, "height": 64, "width": 96})
    path = write_graph(model, signature, tmp_path / "denoiser.onnx").path
    layers = layers_of(sized_graph(sized_model(path, {"batch": 1, "height": 256, "width": 256})))
    kernels = [layer.kernel for layer in layers if layer.op == "Conv"]
    assert (kernels.count((3, 3)), kernels.count((1, 1)) + kernels.count((1,))) == (42, 17)
    assert total([layer.work for layer in layers]).matrix_flops == pytest.approx(273.35e9, rel=1e-4)


def test_kernels_belong_to_the_layer_they_lead_to() -> None:
    """A convolution renamed by its layout, a change of layout before it, and a part of a norm."""
    nodes = [
        node("ReduceMean", "x", "part"),
        node("Reshape", "part", "norm"),
        node("ReorderInput", "norm", "hidden_1"),
        helper.make_node("Conv", ["hidden_1"], ["hidden_2"], name="conv_nchwc"),
        node("AveragePool", "hidden_2", "pool"),
        node("Cast", "lost", "nowhere"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    layers = [
        Layer(name, "", (), (), (), frozenset({tensor}), Work(0, 0, 0, 1))
        for name, tensor in (("N", "norm"), ("C", "conv"), ("P", "pool"))
    ]
    owners = kernel_owners(model, layers)
    assert owners == {
        "part": "N",
        "norm": "N",
        "hidden_1": "C",
        "conv_nchwc": "C",
        "pool": "P",
        "nowhere": OTHER,
    }


def test_onnxruntime_times_every_layer(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    what = counted(bundle, "denoiser", "fp32", SIZES)
    feeds = {tensor.name: np.ones(tensor.shape, np.float32) for tensor in what.graph.inputs}
    times = layer_times(what.model, tiny_bundle / "onnx", what.layers, feeds, runs=2, threads=1)
    assert len(times.run_us) == 2
    convolutions = {layer.name for layer in what.layers if layer.op in ("Conv", "GroupNormalization")}
    assert convolutions <= times.layers.keys()
    assert times.layers.get(OTHER, 0.0) < 0.1 * sum(times.layers.values())


def test_rows_and_the_farthest_layers() -> None:
    layers = [
        Layer(f"l{index}", "Conv", (1,), (), ("Conv",), frozenset(), Work(index * 10**6, 0, 0, 1))
        for index in range(12)
    ]
    times = LayerTimes({f"l{index}": 10.0 * index for index in range(11)}, (1.0,))
    rows = layer_rows(layers, lambda work: floor_of(work, ceilings(1e9, 1e12)), times)
    assert rows[3]["floor_us"] == 3.0
    assert rows[3]["floor_percent"] == 10.0
    assert rows[0]["floor_percent"] is None  # nothing was timed
    assert farthest(rows) == [f"l{index}" for index in range(10, 0, -1)]
    assert len(farthest(rows)) == FARTHEST
    assert profile_report(times, rows)["below_floor"] == []
    quick = layer_rows(layers, lambda work: floor_of(work, ceilings(1e9, 1e10)), times)
    assert profile_report(times, quick)["below_floor"] == [f"l{index}" for index in range(1, 11)]


def test_projections_are_labelled_sums_over_layers(tiny_bundle: Path) -> None:
    what = counted(Bundle.open(tiny_bundle), "denoiser", "fp16", SIZES)
    rows = projections(what, steps=10)
    assert [row["gpu"] for row in rows] == ["RTX 4090", "H200"]
    for gpu, row in zip(GPUS, rows, strict=True):
        assert row["kind"] == PROJECTION
        least = sum(roofline_on(gpu, layer.work).us for layer in what.layers) / 1e3
        assert row["floor_ms"] == pytest.approx(least, abs=1e-5)
        assert row["image_floor_ms"] == pytest.approx(10 * row["floor_ms"], abs=1e-4)
        assert row["floor_ms"] < row["unfused_floor_ms"]


def test_the_report_of_a_bundle(tiny_bundle: Path) -> None:
    report = roofline_report(Bundle.open(tiny_bundle), SIZES, "cpu", ceilings(1e10, 1e11), steps=3, runs=1)
    what = counted(Bundle.open(tiny_bundle), "denoiser", "fp32", SIZES)
    assert report["ceilings"] == {
        "copy_gb_per_s": 10.0,
        "matrix_product_gflop_per_s": 100.0,
        "fastest_product": "a product",
        "copies_gb_per_s": {"1.049 MB": 10.0},
        "products_gflop_per_s": {"a product": 100.0},
    }
    floors = floors_report(what, lambda work: floor_of(work, ceilings(1e10, 1e11)))
    assert report["floor_ms"] == floors["floor_ms"] < report["unfused_floor_ms"]
    assert len(report["layer_rows"]) == report["layers"] == len(what.layers)
    assert len(report["farthest"]) == FARTHEST


def test_without_a_profiler_there_are_floors_alone(tiny_bundle: Path) -> None:
    report = roofline_report(Bundle.open(tiny_bundle), SIZES, "cuda", ceilings(1e10, 1e11), steps=3, runs=1)
    assert report["precision"] == "fp16"
    assert "times launches" in report["no_layer_times"]
    assert all("us" not in row for row in report["layer_rows"])


def test_ceilings_are_measured_and_the_highest_product_counts() -> None:
    measured = measured_ceilings("cpu", nbytes=1 << 20, size=16)
    assert list(measured.copies) == [1 << 21, 1 << 19, 1 << 17]
    assert min(measured.copies.values()) > 0
    kinds = [name.split(" of ")[0] for name in measured.products]
    assert (
        kinds == ["torch, 16 x 16 matrices", "ONNX Runtime, 16 x 16 matrices"] + ["ONNX Runtime, 3x3 convolution"] * 3
    )
    # Matrices of 16 by 16 are too small for any machine to be at its best.
    assert measured.fastest_product.startswith("ONNX Runtime, 3x3 convolution")
    assert measured.matrix_flops == max(measured.products.values())


def test_a_convolution_of_known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one second; its operations are counted as those of the layers are."""
    monkeypatch.setattr(ceilings_module, "_least_s", lambda run: run() is None or 1.0)
    monkeypatch.setattr(ceilings_module, "CONVOLUTIONS", ((3, 5),))
    flops = list(measured_ceilings("cpu", nbytes=1 << 10, size=8).products.values())
    assert flops[:2] == [2 * 8**3] * 2
    assert flops[2] == 2 * sum(multiply_adds(1, (3, 5, 5), (3, 3, 3, 3)))


def test_a_small_copy_may_be_as_fast_as_those_in_a_cache() -> None:
    copies = {512: 50.0, 2048: 90.0, 8192: 70.0, 1 << 20: 10.0}
    found = MeasuredCeilings(copies, {"p": 1.0})
    sizes = (100, 600, 2048, 8000, 8192, 1 << 20, 1 << 30)
    assert [found.bandwidth(nbytes) for nbytes in sizes] == [90.0, 90.0, 90.0, 90.0, 70.0, 10.0, 10.0]
    assert floor_of(Work(0, 0, 9000, 1), found).us == pytest.approx(9000 / 70.0 * 1e6)


def test_the_higher_ceilings_count_each_by_itself() -> None:
    quiet, busy = (
        MeasuredCeilings({8: 1.0, 4: 3.0}, {"a": 5.0, "b": 4.0}),
        MeasuredCeilings({8: 2.0}, {"a": 3.0, "b": 6.0}),
    )
    both = higher(quiet, busy)
    assert both == MeasuredCeilings({8: 2.0, 4: 3.0}, {"a": 5.0, "b": 6.0})
    assert (both.fastest_product, both.matrix_flops) == ("b", 6.0)
    assert (list(both.copies), list(both.products)) == ([8, 4], ["a", "b"])


def test_a_layer_within_the_spread_of_the_runs_is_not_beyond_its_floor() -> None:
    layer = Layer("l", "Conv", (1,), (), ("Conv",), frozenset(), Work(10**6, 0, 0, 1))
    rows = layer_rows([layer], lambda work: floor_of(work, ceilings(1e9, 1e11)), LayerTimes({"l": 9.5}, (1.0,)))
    assert rows[0]["floor_percent"] == 105.3
    steady, shaky = (LayerTimes({"l": 9.5}, runs) for runs in ((1.0, 1.0, 1.0), (1.0, 1.0, 1.1)))
    assert profile_report(steady, rows)["below_floor"] == ["l"]
    assert profile_report(shaky, rows)["below_floor"] == []


@pytest.mark.parametrize("measured", [ceilings(5e10, 2e11), ceilings(1e10, 3e10)], ids=["as measured", "too low"])
def test_real_layers_are_below_ceilings_only(tiny_bundle: Path, measured: MeasuredCeilings) -> None:
    """Of times that are the floors on a machine of 50 GB/s and 200 GFLOP/s, only too low ceilings count any."""
    what = counted(Bundle.open(tiny_bundle), "denoiser", "fp32", SIZES)
    layers = {layer.name: floor_of(layer.work, ceilings(5e10, 2e11)).us for layer in what.layers}
    times = LayerTimes(layers, (1.0, 1.0))
    rows = layer_rows(what.layers, lambda work: floor_of(work, measured), times)
    assert bool(profile_report(times, rows)["below_floor"]) is (measured.matrix_flops < 2e11)

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saishiki.export.engines import EngineBuildError
from saishiki.export.engines.log import BuildLog, logger_into
from saishiki.export.engines.mapped_weights import MappedWeights
from saishiki.export.engines.network import check_network, count_fusable_attentions, network_from_onnx
from saishiki.runtime.signature import TensorSpec

trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'saishiki[rtx]'")


@contextmanager
def parsed(onnx: Path) -> Iterator[Any]:
    """The network of a graph, while its builder and logger live."""
    logger = logger_into(BuildLog(), trt)
    builder = trt.Builder(logger)
    with MappedWeights() as weights:
        yield network_from_onnx(onnx, weights, builder=builder, logger=logger, trt=trt)


def test_network_from_onnx_names_an_unknown_operator(unknown_operator_case: Any) -> None:
    message = "operator Sparkle.*; change the graph, or leave the target out"
    with pytest.raises(EngineBuildError, match=message), parsed(unknown_operator_case.onnx):
        pass


def test_network_from_onnx_names_a_missing_file(tmp_path: Path) -> None:
    with (
        pytest.raises(EngineBuildError, match=r"cannot be read: No such file.*nothing\.onnx"),
        parsed(tmp_path / "nothing.onnx"),
    ):
        pass


def test_network_from_onnx_refuses_weights_that_are_cut_short(weights_in_a_file: Any) -> None:
    os.truncate(weights_in_a_file.onnx.with_suffix(".data"), 1000)
    with pytest.raises(EngineBuildError, match="the ONNX parser refuses it"), parsed(weights_in_a_file.onnx):
        pass


BIAS = TensorSpec("bias", "float16", ("1", "16", "1", "1"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            (TensorSpec("z", "float16", ("batch", "8", "height", "width")), BIAS),
            r"the graph's inputs are \['bias', 'x'\], the signature's \['bias', 'z'\]",
        ),
        (
            (TensorSpec("x", "float32", ("batch", "8", "height", "width")), BIAS),
            r"the graph has x: float16 \(-1, 8, -1, -1\), the signature x: float32 \(batch, 8, height, width\)",
        ),
        (
            (TensorSpec("x", "float16", ("batch", "4", "height", "width")), BIAS),
            r"the signature x: float16 \(batch, 4, height, width\) at \{'batch': 1",
        ),
    ],
    ids=["name", "dtype", "shape"],
)
def test_check_network_compares_the_graph_with_the_signature(
    conv_case: Any, inputs: tuple[TensorSpec, ...], message: str
) -> None:
    with parsed(conv_case.onnx) as network, pytest.raises(EngineBuildError, match=message):
        check_network(network, replace(conv_case.signature, inputs=inputs), conv_case.profiles)


def test_check_network_compares_the_outputs_too(conv_case: Any) -> None:
    outputs = (TensorSpec("y", "float16", ("batch", "16", "height/2")),)
    message = r"the graph has y: float16 \(-1, 16, -1, -1\), the signature y: float16 \(batch, 16, height/2\)"
    with parsed(conv_case.onnx) as network, pytest.raises(EngineBuildError, match=message):
        check_network(network, replace(conv_case.signature, outputs=outputs), conv_case.profiles)


def test_check_network_accepts_what_was_declared(conv_case: Any) -> None:
    with parsed(conv_case.onnx) as network:
        check_network(network, conv_case.signature, conv_case.profiles)


@pytest.mark.parametrize(("dtype", "count"), [("float16", 1), ("float32", 0)])
def test_count_fusable_attentions(attention_case: Any, dtype: str, count: int) -> None:
    with parsed(attention_case(dtype=dtype).onnx) as network:
        assert count_fusable_attentions(network, trt) == count

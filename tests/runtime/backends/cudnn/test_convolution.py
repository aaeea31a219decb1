"""What a convolution asks cuDNN for, and that this is the convolution: computed from its graph, against fp64."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.layout import Layout
from saishiki.runtime.backends.cudnn.planner import Planner
from tests.runtime.backends.cudnn.host_memory import run
from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend
from tests.runtime.backends.cudnn.references import convolution_arrays, convolution_reference

CONVOLUTIONS = {
    "3x3": Convolution(1, 5, 7, 16, 8, (3, 3), 1, (1, 1, 1, 1)),
    "3x3 residual": Convolution(2, 5, 7, 16, 24, (3, 3), 1, (1, 1, 1, 1), residual=True),
    "1x1": Convolution(2, 4, 3, 8, 16, (1, 1)),
    "stride 2": Convolution(1, 8, 6, 8, 8, (3, 3), 2, (1, 1, 1, 1), residual=True),
    "stride 2, padded below and right": Convolution(1, 8, 6, 8, 8, (3, 3), 2, (0, 0, 1, 1)),
    "every side padded differently": Convolution(1, 6, 5, 8, 8, (3, 2), 1, (3, 2, 1, 0), residual=True),
    "1x3": Convolution(1, 4, 9, 8, 8, (1, 3), 2, (0, 1, 0, 0)),
}


def error(op: Convolution, of: Convolution) -> float:
    """The largest difference of what one operation computes from what another one means."""
    arrays = convolution_arrays(of)
    y = run(op, arrays, (of.batch, *of.output_size, of.filters)).astype(np.float64)
    return float(np.abs(y - convolution_reference(of, arrays)).max())


@pytest.mark.parametrize("op", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_computes_what_it_says(op: Convolution) -> None:
    assert error(op, op) < 0.02  # half an ulp of 32, and fp32 sums


class Nchw(Convolution):
    """The wrong strides."""

    def layouts(self) -> Mapping[str, Layout]:
        def swapped(layout: Layout) -> Layout:
            _, c, h, w = layout.dims
            return Layout(layout.dims, (c * h * w, h * w, w, 1))

        return {name: swapped(layout) for name, layout in super().layouts().items()}


WRONG = {
    "strides of NCHW": (Nchw(1, 5, 7, 16, 8, (3, 3), 1, (1, 1, 1, 1)), CONVOLUTIONS["3x3"]),
    "padded above instead of below": (
        replace(CONVOLUTIONS["stride 2, padded below and right"], padding=(1, 1, 0, 0)),
        CONVOLUTIONS["stride 2, padded below and right"],
    ),
}


@pytest.mark.parametrize(("wrong", "right"), WRONG.values(), ids=WRONG)
def test_a_wrong_convolution_is_seen(wrong: Convolution, right: Convolution) -> None:
    assert not error(wrong, right) < 1


def test_convolution_records_residual_before_bias(played: PlayedFrontend) -> None:
    Planner(played.cudnn, 90).candidates(CONVOLUTIONS["3x3 residual"])
    assert played.graphs[0].log[:3] == ["conv [1, 1] [1, 1] [1, 1]", "add residual", "add bias"]


def test_convolution_without_residual_has_a_bias_alone(played: PlayedFrontend) -> None:
    Planner(played.cudnn, 90).candidates(CONVOLUTIONS["stride 2, padded below and right"])
    graph = played.graphs[0]
    assert graph.log[:2] == ["conv [0, 0] [1, 1] [2, 2]", "add bias"]
    assert list(graph.tensors) == ["x", "w", "bias"]


def test_convolution_declares_nhwc_halves(played: PlayedFrontend) -> None:
    Planner(played.cudnn, 90).candidates(Convolution(2, 5, 7, 16, 24, (3, 3), 2, (1, 1, 1, 1), residual=True))
    (graph,) = played.graphs
    y = graph.made[-1]
    assert {name: (tensor.dims, tensor.strides, tensor.uid) for name, tensor in graph.tensors.items()} == {
        "x": ([2, 16, 5, 7], [560, 1, 112, 16], 1),
        "w": ([24, 16, 3, 3], [144, 1, 48, 16], 2),
        "bias": ([1, 24, 1, 1], [24, 1, 24, 24], 3),
        "residual": ([2, 24, 3, 4], [288, 1, 96, 24], 4),
    }
    assert (y.dims, y.strides, y.uid, y.is_output) == ([2, 24, 3, 4], [288, 1, 96, 24], 5, True)
    assert {tensor.dtype.name for tensor in (*graph.tensors.values(), y)} == {"HALF"}


def test_layouts_count_bytes() -> None:
    op = Convolution(2, 5, 7, 16, 24, (3, 3), 2, (1, 1, 1, 1), residual=True)
    assert {name: layout.nbytes for name, layout in op.layouts().items()} == {
        "x": 2 * 2 * 5 * 7 * 16,
        "w": 2 * 24 * 3 * 3 * 16,
        "bias": 2 * 24,
        "residual": 2 * 2 * 3 * 4 * 24,
        "y": 2 * 2 * 3 * 4 * 24,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 7}, "channels is 7, expected a multiple of 8; pad the tensor with zero channels"),
        ({"filters": 3}, "filters is 3, expected a multiple of 8"),
        ({"height": 0}, "height is 0, expected a positive integer"),
        ({"batch": 1.0}, "batch is 1.0, expected a positive integer"),
        ({"stride": 3}, "stride is 3, expected 1 or 2"),
        ({"kernel": (3,)}, r"kernel is \(3,\), expected rows and columns"),
        ({"padding": (1, 1)}, r"padding is \(1, 1\), expected top, left, bottom, right"),
        ({"padding": (0, 0, -1, 0)}, "none of them negative"),
        ({"kernel": (8, 3)}, "the kernel is larger than the padded picture"),
    ],
)
def test_convolution_of_wrong_sizes(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONVOLUTIONS["3x3"], **change)

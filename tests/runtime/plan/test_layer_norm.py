import numpy as np
import pytest

from saishiki.runtime.plan.ops import Cost, LayerNorm
from tests.runtime.plan.running import assert_computes, dense, draw, extents, strided

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")

ROWS, CHANNELS, EPSILON = 6, 9, 1e-5


def normalised(arrays, x):
    """torch's in fp64."""
    weight, bias = (torch.from_numpy(arrays[name]).double() if name in arrays else None for name in ("w", "b"))
    x = torch.from_numpy(x.astype(np.float64))
    return torch.nn.functional.layer_norm(x, (CHANNELS,), weight, bias, EPSILON).numpy()


@pytest.mark.parametrize("vectors", [(), ("w",), ("b",), ("w", "b")], ids=["plain", "weight", "bias", "both"])
@pytest.mark.parametrize(("mean", "tolerance"), [(0.0, 4e-6), (1000.0, 1e-4)], ids=["", "large_mean"])
def test_layer_norm(vectors, mean, tolerance):
    arrays = {"x": draw(ROWS, CHANNELS, mean=mean)}
    arrays |= {name: draw(CHANNELS, seed=seed, mean=1.0, dtype="float32") for seed, name in enumerate(vectors, 1)}
    op = LayerNorm(
        dense("x", ROWS, CHANNELS), "y", EPSILON, *(name if name in vectors else None for name in ("w", "b"))
    )
    assert op.reads() == ("x", *vectors)
    assert_computes(op, arrays, {"y": normalised(arrays, arrays["x"])}, tolerance=tolerance)


def test_rows_that_are_parts_of_longer_ones_go_to_any_dims():
    arrays = {"x": draw(ROWS, CHANNELS + 3)}
    truth = normalised(arrays, arrays["x"][:, 2:-1]).reshape(2, 3, CHANNELS)
    op = LayerNorm(strided("x", (ROWS, CHANNELS), (CHANNELS + 3, 1), 2), "y", EPSILON)
    assert_computes(op, arrays, {"y": truth})


def test_a_row_of_equal_numbers_is_zero():
    arrays = {"x": np.full((1, CHANNELS), 3, np.float16)}
    assert_computes(LayerNorm(dense("x", 1, CHANNELS), "y", EPSILON), arrays, {"y": np.zeros((1, CHANNELS))})


def test_cost():
    op = LayerNorm(strided("x", (6, 9), (12, 1), 2), "y", EPSILON, "w", "b")
    tensors = extents(x=((6, 12), "float16"), w=((9,), "float32"), b=((9,), "float32"), y=((2, 3, 9), "float16"))
    assert op.cost(tensors) == Cost(0, 108 + 36 + 36 + 108)

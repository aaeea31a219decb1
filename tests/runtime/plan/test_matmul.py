import numpy as np
import pytest

from saishiki.runtime.plan.ops import Cost, Matmul
from tests.runtime.plan.running import assert_computes, dense, draw, extents, strided

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")

ROWS, WIDTH, FEATURES = 7, 5, 3


def linear(x, weight, bias=None):
    """torch's in fp64."""
    bias = None if bias is None else torch.from_numpy(bias).double()
    return torch.nn.functional.linear(torch.from_numpy(x).double(), torch.from_numpy(weight).double(), bias).numpy()


def operands():
    return {"x": draw(ROWS, WIDTH), "w": draw(FEATURES, WIDTH, seed=1), "b": draw(FEATURES, seed=2)}


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
def test_matmul(bias, residual):
    arrays = operands()
    truth = linear(arrays["x"], arrays["w"], arrays["b"] if bias else None)
    if residual:
        arrays["r"] = draw(ROWS, FEATURES, seed=3)
        truth = truth + arrays["r"]
    op = Matmul(
        dense("x", ROWS, WIDTH),
        "w",
        dense("y", ROWS, FEATURES),
        "b" if bias else None,
        dense("r", ROWS, FEATURES) if residual else None,
    )
    assert op.reads() == ("x", "w", *["b"] * bias, *["r"] * residual)
    assert_computes(op, arrays, {"y": truth})


def test_rows_that_are_parts_of_longer_ones():
    """x: the middle of rows of 9; residual: every other row; out: the end of rows of 4, whose beginning is left."""
    arrays = operands() | {"x": draw(ROWS, 9), "r": draw(2 * ROWS, FEATURES, seed=3)}
    truth = np.full((ROWS, 4), np.nan)
    truth[:, 1:] = linear(np.ascontiguousarray(arrays["x"][:, 2:7]), arrays["w"], arrays["b"]) + arrays["r"][::2]
    op = Matmul(
        strided("x", (ROWS, WIDTH), (9, 1), 2),
        "w",
        strided("y", (ROWS, FEATURES), (4, 1), 1),
        "b",
        strided("r", (ROWS, FEATURES), (2 * FEATURES, 1)),
    )
    assert_computes(op, arrays, {"y": truth})


def test_sums_are_not_rounded_on_the_way():
    """2048 + 1 + 1 is 2048 where every sum is rounded to fp16."""
    arrays = {"x": np.array([[2048, 1, 1]], np.float16), "w": np.ones((1, 3), np.float16)}
    assert_computes(Matmul(dense("x", 1, 3), "w", dense("y", 1, 1)), arrays, {"y": np.array([[2050.0]])})


def test_cost():
    op = Matmul(strided("x", (7, 5), (9, 1)), "w", strided("y", (7, 3), (4, 1)), "b", strided("r", (7, 3), (0, 1)))
    tensors = extents(
        x=((7, 9), "float16"),
        w=((3, 5), "float16"),
        b=((3,), "float16"),
        r=((3,), "float16"),
        y=((7, 4), "float32"),
    )
    assert op.cost(tensors) == Cost(2 * 7 * 5 * 3, 70 + 30 + 6 + 6 + 84)

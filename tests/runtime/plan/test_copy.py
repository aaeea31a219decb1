import numpy as np
import pytest

from saishiki.runtime.plan.ops import Copy, Cost
from tests.runtime.plan.running import assert_computes, compute, dense, draw, extents, strided


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parts_behind_one_another(axis):
    shapes = [[2, 3, 5], [2, 3, 5], [2, 3, 5]]
    for shape, length in zip(shapes, (1, 4, 2), strict=True):
        shape[axis] = length
    arrays = {name: draw(*shape, seed=seed) for seed, (name, shape) in enumerate(zip("abc", shapes, strict=True))}
    truth = np.concatenate(list(arrays.values()), axis=axis)
    op = Copy(tuple(dense(name, *array.shape) for name, array in arrays.items()), axis, dense("y", *truth.shape))
    assert op.reads() == ("a", "b", "c")
    assert_computes(op, arrays, {"y": truth})


def test_a_buffer_that_is_read_twice_is_named_once():
    op = Copy((dense("a", 2, 3), dense("a", 2, 3)), 1, dense("y", 2, 6))
    assert op.reads() == ("a",)
    a = draw(2, 3)
    assert_computes(op, {"a": a}, {"y": np.concatenate([a, a], axis=1)})


def test_cast():
    """fp32 of the interface to fp16, rounded to nearest, ties to even."""
    x = np.array([[1 + 2**-11, 1 + 3 * 2**-11, 0.1, 70000.0]], np.float32)
    with np.errstate(over="ignore"):
        y = compute(Copy((dense("x", 1, 4),), 0, dense("y", 1, 4)), {"x": x}, {"y": (1, 4)}, dtype="float16")["y"]
    assert y.tolist() == [[1.0, 1 + 2**-9, float(np.float16(0.1)), np.inf]]


def test_channels_are_padded_with_zeros():
    """Images of the interface (B, 3, H, W) to (B, H, W, 8)."""
    x = draw(2, 3, 5, 7, dtype="float32").astype(np.float16)
    truth = np.zeros((2, 5, 7, 8))
    truth[..., :3] = x.transpose(0, 2, 3, 1)
    out = strided("y", (2, 8, 5, 7), (5 * 7 * 8, 1, 7 * 8, 8))
    assert_computes(Copy((dense("x", 2, 3, 5, 7),), 1, out), {"x": x}, {"y": truth})


def test_into_a_part_of_a_buffer():
    """The rest stays as it was."""
    x = draw(2, 3)
    truth = np.full((2, 8), np.nan)
    truth[:, 2:5] = x
    assert_computes(Copy((dense("x", 2, 3),), 0, strided("y", (2, 3), (8, 1), 2)), {"x": x}, {"y": truth})


def test_transposed_parts_into_a_transposed_buffer():
    a, b = draw(3, 2), draw(2, 4, seed=1)
    truth = np.concatenate([a.T, b], axis=1).T
    parts = strided("a", (2, 3), (1, 2)), dense("b", 2, 4)
    assert_computes(Copy(parts, 1, strided("y", (2, 7), (1, 2))), {"a": a, "b": b}, {"y": truth})


def test_pixels_repeated_by_strides_of_0():
    """Nearest neighbour by two: (B, H, 2, W, 2, C) of (B, H, W, C)."""
    x = draw(2, 3, 5, 4)
    part = strided("x", (2, 3, 2, 5, 2, 4), (60, 20, 0, 4, 0, 1))
    truth = x.repeat(2, axis=1).repeat(2, axis=2)
    assert_computes(Copy((part,), 0, dense("y", 2, 3, 2, 5, 2, 4)), {"x": x}, {"y": truth})


def test_parts_longer_than_out():
    with pytest.raises(ValueError, match="broadcast"):
        compute(Copy((dense("a", 2, 3), dense("a", 2, 3)), 1, dense("y", 2, 5)), {"a": draw(2, 3)}, {"y": (2, 5)})


def test_cost_counts_what_is_repeated_once():
    op = Copy((strided("x", (2, 3, 2, 5, 2, 4), (60, 20, 0, 4, 0, 1)),), 0, dense("y", 2, 3, 2, 5, 2, 4))
    tensors = extents(x=((2, 3, 5, 4), "float32"), y=((2, 6, 10, 4), "float16"))
    assert op.cost(tensors) == Cost(0, 120 * 4 + 480 * 2)

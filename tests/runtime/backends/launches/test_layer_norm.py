import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.runtime.backends.launches import launches_of
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.ops import LayerNorm
from tests.runtime.backends.launches.launched import (
    assert_launches_compute,
    assert_near,
    computed,
    launched,
)
from tests.runtime.plan.running import dense, draw, extents, strided

ROWS = 13


def operands(channels, mean=0.0):
    vectors = {"w": draw(channels, seed=1, mean=1.0, dtype="float32"), "b": draw(channels, seed=2, dtype="float32")}
    return {"x": draw(ROWS, channels, mean=mean)} | vectors


@pytest.mark.parametrize("mean", [0.0, 300.0])
@pytest.mark.parametrize(
    ("channels", "block"), [(320, 512), (512, 512), (640, 1024), (1280, 2048), (2048, 2048), (2560, 4096)]
)
def test_layer_norm(channels, block, mean):
    op = LayerNorm(dense("x", ROWS, channels), "y", 1e-5, "w", "b")
    kernels = [f"layer_norm_{block}_fp16"]
    assert_launches_compute(op, operands(channels, mean), {"y": (ROWS, channels)}, kernels=kernels, floor=2.0**-14)


@pytest.mark.parametrize("weight", [None, "w"])
@pytest.mark.parametrize("bias", [None, "b"])
def test_layer_norm_of_parts_of_longer_rows(weight, bias):
    arrays = operands(40) | {"x": draw(ROWS, 120)}
    op = LayerNorm(strided("x", (ROWS, 40), (120, 1), 80), "y", 1e-6, weight, bias)
    assert_launches_compute(op, arrays, {"y": (1, ROWS, 40)}, kernels=["layer_norm_512_fp16"])


@pytest.mark.parametrize("change", [{"epsilon": 0.1}, {"weight": None}, {"bias": "w"}])
def test_another_layer_norm_is_seen(change):
    op, arrays = LayerNorm(dense("x", ROWS, 64), "y", 1e-5, "w", "b"), operands(64)
    nothing = {"y": np.full((ROWS, 64), np.nan, "float16")}
    got, _ = launched(msgspec.structs.replace(op, **change), arrays, nothing)
    with pytest.raises(AssertionError, match="y"):
        assert_near(got, computed(op, arrays, nothing))


@pytest.mark.parametrize(
    ("part", "vector", "message"),
    [
        (dense("x", 2, 4104), "float32", "no kernel normalises rows of 4104 numbers: expected at most 4096"),
        (dense("x", 2, 12), "float32", "rows of 12 numbers of x at strides 12, 1: expected numbers side by side"),
        (strided("x", (2, 16), (1, 2)), "float32", "at strides 1, 2"),
        (dense("x", 2, 16), "float16", "no kernel of LayerNorm takes w in float16: expected float32"),
    ],
    ids=["long", "odd", "strides", "vector"],
)
def test_rows_that_no_kernel_takes(part, vector, message):
    shape = tuple(map(int, part.shape))
    known = extents(x=((2, 2056), "float16"), y=(shape, "float16"), w=(shape[1:], vector))
    with pytest.raises(BackendError, match=message):
        launches_of(LayerNorm(part, "y", 1e-5, "w"), known, lambda name: 0, sms=1)

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.runtime.backends.launches import launches_of
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.ops import Mean, Pool
from tests.runtime.backends.launches.launched import (
    assert_launches_compute,
    assert_near,
    computed,
    launched,
)
from tests.runtime.plan.running import draw, extents


@pytest.mark.parametrize("shape", [(1, 2, 2, 8), (2, 6, 10, 24), (3, 14, 22, 40)])
def test_pool(shape):
    batch, height, width, channels = shape
    written = {"y": (batch, height // 2, width // 2, channels)}
    assert_launches_compute(Pool("x", "y"), {"x": draw(*shape)}, written, kernels=["average_pool_fp16"])


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize(("shape", "channels"), [((2, 7, 11, 40), 40), ((1, 5, 5, 8), 3), ((3, 9, 8, 72), 70)])
def test_mean(shape, channels, mean):
    """Also of images that are padded in channels, whose mean is not."""
    arrays = {"x": draw(*shape, mean=mean)}
    assert_launches_compute(Mean("x", "y"), arrays, {"y": (shape[0], channels)}, kernels=["mean_fp16"])


def test_another_picture_is_seen():
    arrays = {"x": draw(2, 4, 4, 8)}
    for op, shape in ((Pool("x", "y"), (2, 2, 2, 8)), (Mean("x", "y"), (2, 8))):
        nothing = {"y": np.full(shape, np.nan, "float16")}
        got, _ = launched(op, {"x": arrays["x"][::-1]}, nothing)
        with pytest.raises(AssertionError, match="y"):
            assert_near(got, computed(op, arrays, nothing))


@pytest.mark.parametrize(
    ("op", "x", "y", "message"),
    [
        (Pool("x", "y"), (1, 5, 4, 8), (1, 2, 2, 8), "cannot pool x of .1, 5, 4, 8. by 2x2 into .1, 2, 2, 8."),
        (Pool("x", "y"), (1, 4, 4, 12), (1, 2, 2, 12), "averages 12 channels of x: expected a multiple of 8"),
        (Mean("x", "y"), (1, 4, 4, 12), (1, 12), "averages 12 channels of x"),
    ],
    ids=["odd", "channels", "channels_of_mean"],
)
def test_averages_that_no_kernel_takes(op, x, y, message):
    with pytest.raises(BackendError, match=message):
        launches_of(op, extents(x=(x, "float16"), y=(y, "float16")), lambda name: 0, sms=1)


def test_averages_into_fp32():
    known = extents(x=((1, 4, 4, 8), "float16"), y=((1, 8), "float32"))
    with pytest.raises(BackendError, match="no kernel of Mean takes y in float32"):
        launches_of(Mean("x", "y"), known, lambda name: 0, sms=1)

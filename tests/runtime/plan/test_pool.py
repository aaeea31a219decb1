import numpy as np
import pytest

from saishiki.runtime.plan.ops import Cost, Mean, Pool
from tests.runtime.plan.running import assert_computes, compute, draw, extents

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")


def test_pool():
    x = draw(2, 6, 10, 8)
    images = torch.from_numpy(x).double().permute(0, 3, 1, 2)
    truth = torch.nn.functional.avg_pool2d(images, 2).permute(0, 2, 3, 1).numpy()
    assert_computes(Pool("x", "y"), {"x": x}, {"y": truth})


def test_pool_of_an_odd_height():
    with pytest.raises(ValueError, match="cannot reshape"):
        compute(Pool("x", "y"), {"x": draw(2, 5, 10, 8)}, {"y": (2, 2, 5, 8)})


def test_mean():
    x = draw(2, 5, 7, 8, mean=1.0)
    assert_computes(Mean("x", "y"), {"x": x}, {"y": x.mean(axis=(1, 2), dtype=np.float64)})


def test_mean_leaves_the_padding_of_channels():
    x = draw(2, 5, 7, 8, mean=1.0)
    assert_computes(Mean("x", "y"), {"x": x}, {"y": x.mean(axis=(1, 2), dtype=np.float64)[:, :3]})


def test_mean_of_many_pixels_is_not_summed_in_fp16():
    """Sums of ones stop at 2048 in fp16."""
    x = np.ones((1, 65, 63, 8), np.float16)
    assert compute(Mean("x", "y"), {"x": x}, {"y": (1, 8)}, dtype="float16")["y"].tolist() == [[1.0] * 8]


def test_cost():
    pooled = extents(x=((2, 6, 10, 8), "float16"), y=((2, 3, 5, 8), "float16"))
    assert Pool("x", "y").cost(pooled) == Cost(0, 1920 + 480)
    averaged = extents(x=((2, 6, 10, 8), "float16"), y=((2, 8), "float32"))
    assert Mean("x", "y").cost(averaged) == Cost(0, 1920 + 64)

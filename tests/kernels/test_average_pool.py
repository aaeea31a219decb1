"""The mean of each 2x2 pixels against its reference in fp64, on the GPU or under Triton's interpreter."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.average_pool import average_pool, average_pool_reference  # noqa: E402
from tests.kernels.drawing import DTYPES, assert_within_budget, draw  # noqa: E402

pytestmark = pytest.mark.usefixtures("nan_in_new_memory")


def image(*shape: int, dtype: str = "fp16", mean: float = 0.0) -> Any:
    return draw(*shape, seed=0, mean=mean, dtype=DTYPES[dtype]).contiguous(memory_format=torch.channels_last)


def assert_as_good_as_torch(x: Any, y: Any) -> None:
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_within_budget(y, average_pool_reference(x), average_pool_reference(x.double()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8, 2, 2), (2, 24, 6, 10), (3, 64, 10, 14), (1, 5, 4, 66)])
def test_average_pool(shape: tuple[int, ...], dtype: str) -> None:
    x = image(*shape, dtype=dtype)
    assert_as_good_as_torch(x, average_pool(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_average_pool_of_a_large_mean(dtype: str) -> None:
    x = image(2, 16, 8, 6, dtype=dtype, mean=300.0)
    assert_as_good_as_torch(x, average_pool(x))


@pytest.mark.parametrize("axis", [2, 3])
def test_pixels_that_are_one_off_are_seen(axis: int) -> None:
    x = image(1, 8, 8, 8)
    shifted = x.roll(1, axis).contiguous(memory_format=torch.channels_last)
    with pytest.raises(AssertionError):
        assert_as_good_as_torch(x, average_pool(shifted))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (image(1, 8, 4, 5), ValueError, "with H and W even, got .1, 8, 4, 5."),
        (image(1, 8, 4, 4)[0], ValueError, "expected x .B, C, H, W."),
        (image(1, 8, 4, 4).contiguous(), ValueError, "not channels_last"),
        (image(1, 8, 4, 4).double(), TypeError, "got torch.float64"),
    ],
    ids=["odd", "axes", "layout", "dtype"],
)
def test_average_pool_refuses(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        average_pool(x)

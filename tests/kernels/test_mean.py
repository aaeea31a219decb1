"""The mean of all pixels against its reference in fp64, on the GPU or under Triton's interpreter."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.mean import mean, mean_reference  # noqa: E402
from tests.kernels.drawing import DTYPES, assert_within_budget, draw  # noqa: E402

pytestmark = pytest.mark.usefixtures("nan_in_new_memory")


def assert_as_good_as_torch(x: Any, y: Any) -> None:
    assert y.dtype == x.dtype
    assert_within_budget(y, mean_reference(x), mean_reference(x.double()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 63, 40), (3, 64, 32), (2, 200, 72)])
def test_mean(shape: tuple[int, ...], dtype: str) -> None:
    x = draw(*shape, seed=0, dtype=DTYPES[dtype])
    assert_as_good_as_torch(x, mean(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_of_a_large_mean(dtype: str) -> None:
    x = draw(2, 300, 16, seed=0, mean=1000.0, dtype=DTYPES[dtype])
    assert_as_good_as_torch(x, mean(x))


def test_mean_of_numbers_whose_sum_fp16_has_not() -> None:
    x = torch.full((1, 100, 8), 60000.0, dtype=torch.float16, device=draw(1, seed=0).device)
    assert (mean(x) == 60000).all()


def test_a_pixel_that_is_left_out_is_seen() -> None:
    x = draw(2, 65, 16, seed=0, dtype=torch.float16)
    with pytest.raises(AssertionError):
        assert_as_good_as_torch(x, mean(x[:, :-1].contiguous()))


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((2, 0, 8), ValueError, "with P from 1"),
        ((2, 3, 12), ValueError, "C a multiple of 8, got .2, 3, 12."),
        ((2, 8), ValueError, "expected x .B, P, C."),
    ],
)
def test_mean_refuses(shape: tuple[int, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mean(torch.zeros(shape))


def test_mean_refuses_gaps_and_other_dtypes() -> None:
    with pytest.raises(ValueError, match="x is not contiguous"):
        mean(torch.zeros(2, 3, 16)[..., :8])
    with pytest.raises(TypeError, match=r"expected x in torch\.float16 or"):
        mean(torch.zeros(2, 3, 8, dtype=torch.float64))

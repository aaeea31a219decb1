"""LayerNorm against its reference in fp64, on the GPU or under Triton's interpreter."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.layer_norm import layer_norm, layer_norm_reference  # noqa: E402
from tests.kernels.drawing import DTYPES, assert_within_budget, draw  # noqa: E402

EPS = 1e-5

pytestmark = pytest.mark.usefixtures("nan_in_new_memory")


def vectors(channels: int) -> tuple[Any, Any]:
    return draw(channels, seed=1, mean=1.0), draw(channels, seed=2)


def assert_as_good_as_torch(x: Any, y: Any, *given: Any, eps: float = EPS) -> None:
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    truth = layer_norm_reference(x.double(), *given, eps=eps)
    plain = layer_norm_reference(x.float(), *given, eps=eps).to(x.dtype)
    assert_within_budget(y, plain, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "channels"), [(1, 8), (5, 320), (9, 512), (3, 520), (7, 1024), (3, 2048), (2, 2560)])
def test_layer_norm(rows: int, channels: int, dtype: str) -> None:
    x = draw(rows, channels, seed=0, dtype=DTYPES[dtype])
    assert_as_good_as_torch(x, layer_norm(x, *vectors(channels), eps=EPS), *vectors(channels))


@pytest.mark.parametrize("channels", [1, 7, 33])
def test_layer_norm_of_odd_rows(channels: int) -> None:
    x = draw(5, channels, seed=0, dtype=torch.float16)
    assert_as_good_as_torch(x, layer_norm(x, *vectors(channels), eps=EPS), *vectors(channels))


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_without_weight_or_bias(weight: bool, bias: bool) -> None:
    x = draw(5, 40, seed=0, dtype=torch.float16)
    given = [vector if used else None for vector, used in zip(vectors(40), (weight, bias), strict=True)]
    assert_as_good_as_torch(x, layer_norm(x, *given, eps=EPS), *given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [-50.0, 1000.0])
def test_layer_norm_of_a_large_mean(mean: float, dtype: str) -> None:
    """The budget is torch's own, whose mean is not one sum of all numbers either."""
    x = draw(6, 640, seed=0, mean=mean, dtype=DTYPES[dtype])
    assert_as_good_as_torch(x, layer_norm(x, eps=EPS))


def test_layer_norm_of_equal_numbers_is_its_bias() -> None:
    x = torch.full((3, 48), 1234.0, dtype=torch.float16, device=draw(1, seed=0).device)
    weight, bias = vectors(48)
    assert torch.equal(layer_norm(x, weight, bias, eps=EPS), bias.half().expand(3, -1))


def test_layer_norm_of_parts_of_longer_rows() -> None:
    x = draw(6, 200, seed=0, dtype=torch.float16)[:, 40:120]
    assert_as_good_as_torch(x, layer_norm(x, *vectors(80), eps=EPS), *vectors(80))


def test_layer_norm_of_no_rows() -> None:
    assert layer_norm(torch.zeros(0, 16), eps=EPS).shape == (0, 16)


@pytest.mark.parametrize("what", ["eps", "weight", "bias", "rows"])
def test_a_wrong_layer_norm_is_seen(what: str) -> None:
    x, (weight, bias) = draw(5, 64, seed=0, dtype=torch.float16), vectors(64)
    wrong = {
        "eps": lambda: layer_norm(x, weight, bias, eps=1e-2),
        "weight": lambda: layer_norm(x, None, bias, eps=EPS),
        "bias": lambda: layer_norm(x, weight, None, eps=EPS),
        "rows": lambda: layer_norm(x.roll(1, 0), weight, bias, eps=EPS),
    }[what]
    with pytest.raises(AssertionError):
        assert_as_good_as_torch(x, wrong(), weight, bias)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 8)}, ValueError, "expected x .rows, C. with C from 1 to 4096, got .2, 3, 8."),
        ({"x": torch.zeros(2, 4104)}, ValueError, "got .2, 4104."),
        ({"x": torch.zeros(8, 2).T}, ValueError, "next to each other, got strides .1, 2."),
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, TypeError, "got torch.float64"),
        ({"eps": 0.0}, ValueError, "expected a finite eps above 0, got 0.0"),
        ({"weight": torch.zeros(7)}, ValueError, "expected weight of shape .8,., got .7,."),
        ({"bias": torch.zeros(8).half()}, TypeError, "expected bias in torch.float32, got torch.float16"),
    ],
    ids=["axes", "long", "strides", "dtype", "eps", "weight", "bias"],
)
def test_layer_norm_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"x": torch.zeros(2, 8), "weight": None, "bias": None, "eps": EPS} | change
    with pytest.raises(error, match=message):
        layer_norm(**given)

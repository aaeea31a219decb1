"""What is computed number by number against fp64, on the GPU or under Triton's interpreter."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels.pointwise import pointwise, pointwise_reference  # noqa: E402
from saishiki.runtime.backends.launches.elementwise import FUNCTIONS  # noqa: E402
from saishiki.runtime.errors import BackendError  # noqa: E402
from tests.kernels.drawing import DEVICE, draw  # noqa: E402

HALF, SINGLE = torch.float16, torch.float32
OPERANDS = {function: count for count, functions in FUNCTIONS.items() for function in functions}
EPSILON = {HALF: 2.0**-11, SINGLE: 2.0**-22}
"""A rounding to fp16; of fp32, also those of the steps before the last."""


# The interpreter divides where nothing is to be written, too.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in divide")


def nothing(*shape: int, dtype: Any = HALF) -> Any:
    return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)


def operands(count: int, *shape: int, dtype: Any = HALF) -> list[Any]:
    return [draw(*shape, seed=seed, dtype=dtype) for seed in range(count)]


def assert_rounded_once(out: Any, function: str, given: list[Any]) -> None:
    """Each number is within half a step of its dtype from fp64's, and a little for what fp32 cancels."""
    truth = pointwise_reference(function, *(x.double() for x in given)).expand(out.shape)
    largest = max(1.0, *(float(x.abs().max()) for x in given)) ** 2
    off = (out.double() - truth).abs()
    assert not out.isnan().any()
    assert (off <= truth.abs() * EPSILON[out.dtype] * 1.001 + largest * 2.0**-22).all()


@pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=["fp16", "fp32"])
@pytest.mark.parametrize("shape", [(5, 7, 43), (3, 11, 40), (1,), (1500,), (2048,)], ids=str)
@pytest.mark.parametrize("function", OPERANDS)
def test_pointwise(function: str, shape: tuple[int, ...], dtype: Any) -> None:
    given = operands(OPERANDS[function], *shape, dtype=dtype)
    out = nothing(*shape, dtype=dtype)
    assert pointwise(function, *given, out=out) is out
    assert_rounded_once(out, function, given)


@pytest.mark.parametrize("wide", [0, 1, 2, 3])
@pytest.mark.parametrize("width", [24, 27])
def test_dtypes_may_be_mixed(width: int, wide: int) -> None:
    """One of a, b, c and out is fp32."""
    dtypes = [SINGLE if place == wide else HALF for place in range(4)]
    given = [x.to(dtype) for x, dtype in zip(operands(3, 6, 5, width), dtypes, strict=False)]
    out = nothing(6, 5, width, dtype=dtypes[3])
    assert_rounded_once(pointwise("modulate", *given, out=out), "modulate", given)


@pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=["fp16", "fp32"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 1, 1, 1), (1, 1, 1, 32), (3, 1, 1, 32), (3, 4, 5, 1), (1, 4, 1, 32), (32,), ()], ids=str
)
def test_operands_are_repeated(shape: tuple[int, ...], dtype: Any) -> None:
    x, y = draw(3, 4, 5, 32, seed=0, dtype=HALF), draw(*shape, seed=1, dtype=dtype)
    assert_rounded_once(pointwise("mul", x, y, out=nothing(3, 4, 5, 32)), "mul", [x, y])


def test_a_mask_of_each_token_selects() -> None:
    mask, threshold = draw(2, 9, 1, seed=0).sigmoid(), torch.tensor(0.5, dtype=HALF, device=DEVICE)
    above, other = operands(2, 2, 9, 64)
    out = pointwise("select_above", mask, threshold, above, other, out=nothing(2, 9, 64))
    assert torch.equal(out, torch.where(mask > 0.5, above, other))


@pytest.mark.parametrize("to", [HALF, SINGLE], ids=["to_fp16", "to_fp32"])
@pytest.mark.parametrize("of", [HALF, SINGLE], ids=["of_fp16", "of_fp32"])
def test_copy_casts_and_transposes(of: Any, to: Any) -> None:
    nchw = draw(2, 12, 7, 9, seed=0, dtype=of)
    nhwc = nothing(2, 7, 9, 16, dtype=to)
    pointwise("copy", nchw, out=nhwc[..., :12].permute(0, 3, 1, 2))
    assert torch.equal(nhwc[..., :12], nchw.permute(0, 2, 3, 1).to(to))
    assert nhwc[..., 12:].isnan().all()
    pointwise("copy", out=nhwc[..., 12:])
    assert (nhwc[..., 12:] == 0).all()


@pytest.mark.parametrize("width", [16, 13])
def test_copy_of_five_axes_in_another_order(width: int) -> None:
    x = draw(2, 3, 4, 5, width, seed=0, dtype=HALF)
    out = nothing(4, 2, 5, 3, width + 3)[..., :width]
    assert torch.equal(pointwise("copy", x.permute(2, 0, 3, 1, 4), out=out), x.permute(2, 0, 3, 1, 4))


def test_six_axes_that_are_five_in_truth() -> None:
    x = draw(2, 3, 2, 3, 4, 5, seed=0, dtype=HALF).permute(1, 2, 0, 4, 3, 5)
    out = nothing(3, 2, 2, 4, 3, 5)
    assert torch.equal(pointwise("copy", x, out=out), x)


def test_what_lies_outside_is_left_alone() -> None:
    out = nothing(9, 40)
    x = draw(5, 24, seed=0, dtype=HALF)
    pointwise("silu", x, out=out[2:7, 8:32])
    assert_rounded_once(out[2:7, 8:32].clone(), "silu", [x])
    assert out.isnan().sum() == out.numel() - x.numel()


def test_numbers_at_the_ends_of_fp16() -> None:
    x = torch.tensor([-65504.0, -100.0, -20.0, 0.0, 6e-8, 20.0, 100.0, 65504.0], dtype=HALF, device=DEVICE)
    for function in ("silu", "sigmoid", "gelu"):
        out = pointwise(function, x, out=nothing(8))
        expected = pointwise_reference(function, x.double()).half()
        assert torch.equal(out, expected), function


@pytest.mark.parametrize("function", ["sin", "cos"])
def test_angles_of_many_turns(function: str) -> None:
    x = draw(2000, seed=0) * 1000
    out = pointwise(function, x, out=nothing(2000, dtype=SINGLE))
    assert (out - pointwise_reference(function, x.double())).abs().max() < 1e-6


def test_nan_and_infinity() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0], dtype=HALF, device=DEVICE)
    low, high = (torch.tensor(bound, dtype=HALF, device=DEVICE) for bound in (-2.0, 2.0))
    assert str(pointwise("clip", x, low, high, out=nothing(4)).tolist()) == "[nan, 2.0, -2.0, 1.0]"
    above, other = torch.ones_like(x), torch.zeros_like(x)
    assert pointwise("select_above", x, low, above, other, out=nothing(4)).tolist() == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(("function", "instead"), [("add", "sub"), ("silu", "gelu"), ("gated_gelu", "mul")])
def test_another_function_is_seen(function: str, instead: str) -> None:
    given = operands(OPERANDS[function], 4, 40)
    with pytest.raises(AssertionError):
        assert_rounded_once(pointwise(instead, *given, out=nothing(4, 40)), function, given)


@pytest.mark.parametrize(
    ("function", "shapes", "error", "message"),
    [
        ("tan", [(4, 8)], BackendError, "no kernel computes tan of 1 operands"),
        ("add", [(4, 8)], BackendError, "no kernel computes add of 1 operands"),
        ("silu", [], BackendError, "no kernel computes silu of 0 operands"),
        ("add", [(4, 8), (3, 8)], ValueError, "operands that broadcast to .4, 8."),
    ],
)
def test_pointwise_refuses(function: str, shapes: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pointwise(function, *(draw(*shape, seed=0, dtype=HALF) for shape in shapes), out=nothing(4, 8))


def test_pointwise_refuses_other_dtypes_and_too_many_axes() -> None:
    with pytest.raises(TypeError, match=r"expected torch\.float16 or torch\.float32, got torch\.bfloat16"):
        pointwise("silu", draw(4, seed=0, dtype=torch.bfloat16), out=nothing(4))
    x = draw(2, 3, 2, 3, 2, 3, seed=0, dtype=HALF)
    with pytest.raises(BackendError, match="no kernel computes over 6 axes: expected at most 5"):
        pointwise("silu", x, out=nothing(3, 2, 3, 2, 3, 2).permute(5, 4, 3, 2, 1, 0))

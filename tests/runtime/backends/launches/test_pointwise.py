import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.runtime.backends.launches import launches_of
from saishiki.runtime.backends.launches.elementwise import FUNCTIONS
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.extents import Strided
from saishiki.runtime.plan.ops import Copy, Pointwise
from tests.runtime.backends.launches.launched import (
    assert_launches_compute,
    assert_near,
    computed,
    launched,
)
from tests.runtime.plan.running import dense, draw, extents, strided

OPERANDS = {function: count for count, functions in FUNCTIONS.items() for function in functions if function != "copy"}

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in divide", "ignore:divide by zero")


@pytest.mark.parametrize(("width", "unit"), [(40, 8), (41, 1)])
@pytest.mark.parametrize("function", OPERANDS)
def test_every_function(function, width, unit):
    names = "abcd"[: OPERANDS[function]]
    shape = (3, 11, width)
    op = Pointwise(function, tuple(dense(name, *shape) for name in names), dense("y", *shape))
    arrays = {name: draw(*shape, seed=seed) for seed, name in enumerate(names)}
    assert_launches_compute(op, arrays, {"y": shape}, kernels=[f"pointwise_{len(names)}_by{unit}"])


def test_halves_of_rows_gate_one_another():
    sizes = {"batch": 2, "height": 24, "width": 40}
    shape, strides = ("2*batch", "height*width/64", "128"), ("4*height*width", "256", "1")
    halves = (Strided("x", shape, strides), Strided("x", shape, strides, "128"))
    op = Pointwise("gated_gelu", halves, Strided("y", shape, ("2*height*width", "128", "1")))
    written = {"y": (4, 15, 128)}
    assert_launches_compute(op, {"x": draw(4, 15, 256)}, written, kernels=["pointwise_2_by8"], sizes=sizes)


def test_a_vector_of_the_step_modulates_every_pixel():
    """For both slots of guidance, and in fp32 as it is of the interface."""
    shape = (2, 3, 5, 7, 32)
    scale, shift = (strided("v", shape, (0, 96, 0, 0, 1), offset) for offset in (32, 64))
    op = Pointwise("modulate", (dense("x", *shape), scale, shift), dense("y", *shape))
    arrays = {"x": draw(*shape), "v": draw(3, 96, seed=1, dtype="float32")}
    assert_launches_compute(op, arrays, {"y": shape}, kernels=["pointwise_3_by8"])


def test_a_mask_selects_tokens():
    shape = (2, 3, 5, 7, 32)
    mask, threshold = strided("m", shape, (0, 35, 7, 1, 0)), strided("t", shape, (0, 0, 0, 0, 0))
    op = Pointwise("select_above", (mask, threshold, dense("a", *shape), dense("b", *shape)), dense("y", *shape))
    arrays = {"m": draw(3, 5, 7, dtype="float32"), "t": draw(1, seed=1), "a": draw(*shape, seed=2)}
    arrays["b"] = draw(*shape, seed=3)
    assert_launches_compute(op, arrays, {"y": shape}, kernels=["pointwise_4_by8"])


def test_channels_first_is_added_to_channels_last():
    batch, height, width, channels = shape = (2, 5, 7, 16)
    pixels = height * width
    x = strided("x", shape, (channels * pixels, width, 1, pixels))
    op = Pointwise("add", (x, dense("r", *shape)), dense("y", *shape))
    arrays = {"x": draw(batch, channels, height, width, dtype="float32"), "r": draw(*shape, seed=1)}
    assert_launches_compute(op, arrays, {"y": shape}, kernels=["pointwise_2_by1"])


def test_into_the_interface_in_fp32():
    shape = (1, 4, 6, 10)
    x = strided("x", shape, (480, 1, 80, 8), 4)
    low, high = (strided(name, shape, (0, 0, 0, 0)) for name in ("low", "high"))
    arrays = {"x": draw(1, 6, 10, 8), "low": np.float16([-0.5]), "high": np.float16([0.75])}
    op = Pointwise("clip", (x, low, high), dense("y", *shape))
    assert_launches_compute(op, arrays, {"y": shape}, kernels=["pointwise_3_by1"], dtype="float32")


@pytest.mark.parametrize(("width", "unit"), [(512, 8), (500, 1)])
@pytest.mark.parametrize("part", ["float16", "float32"])
@pytest.mark.parametrize("out", ["float16", "float32"])
def test_copy_casts(part, out, width, unit):
    arrays = {"x": draw(3, width, dtype=part)}
    op = Copy((dense("x", 3, width),), 0, dense("y", 3, width))
    assert_launches_compute(op, arrays, {"y": (3, width)}, kernels=[f"pointwise_1_by{unit}"], dtype=out)


def test_copy_of_pictures_side_by_side_and_zeros_behind_them():
    """(B, C, H, W) of the interface and of a buffer into channels that are padded to a multiple of 8."""
    batch, height, width = 2, 9, 11
    pixels = height * width
    first = strided("a", (batch, 3, height, width), (3 * pixels, pixels, width, 1))
    second = strided("b", (batch, 10, height, width), (16 * pixels, 1, width * 16, 16))
    out = strided("y", (batch, 16, height, width), (16 * pixels, 1, width * 16, 16))
    arrays = {"a": draw(batch, 3, height, width, dtype="float32"), "b": draw(batch, height, width, 16, seed=1)}
    kernels = ["pointwise_1_by1"] * 3
    assert_launches_compute(Copy((first, second), 1, out), arrays, {"y": (batch, height, width, 16)}, kernels=kernels)


def test_copy_of_tokens_behind_one_another_into_a_part():
    parts = tuple(strided(name, (2, tokens, 24), (tokens * 24, 24, 1)) for name, tokens in (("a", 13), ("b", 30)))
    out = strided("y", (2, 50, 24), (60 * 24, 24, 1), 5 * 24)
    arrays = {"a": draw(2, 13, 24), "b": draw(2, 30, 24, seed=1)}
    assert_launches_compute(Copy(parts, 1, out), arrays, {"y": (2, 60, 24)}, kernels=["pointwise_1_by8"] * 3)


def test_copy_upsamples():
    """Every pixel twice along both axes, by strides of 0."""
    x = strided("x", (2, 16, 5, 2, 7, 2), (560, 1, 112, 0, 16, 0))
    out = strided("y", (2, 16, 5, 2, 7, 2), (2240, 1, 448, 224, 32, 16))
    arrays = {"x": draw(2, 5, 7, 16)}
    assert_launches_compute(Copy((x,), 0, out), arrays, {"y": (2, 10, 14, 16)}, kernels=["pointwise_1_by8"])


@pytest.mark.parametrize("change", ["function", "swapped", "stride", "offset"])
def test_another_operation_is_seen(change):
    shape = (3, 11, 40)
    x, r = strided("x", shape, (480, 40, 1)), dense("r", *shape)
    op, arrays = Pointwise("sub", (x, r), dense("y", *shape)), {"x": draw(4, 12, 40), "r": draw(*shape, seed=1)}
    other = {
        "function": {"function": "add"},
        "swapped": {"inputs": (r, x)},
        "stride": {"inputs": (dense("x", *shape), r)},
        "offset": {"inputs": (msgspec.structs.replace(x, offset="8"), r)},
    }[change]
    nothing = {"y": np.full(shape, np.nan, "float16")}
    got, _ = launched(msgspec.structs.replace(op, **other), arrays, nothing)
    with pytest.raises(AssertionError, match="y"):
        assert_near(got, computed(op, arrays, nothing))


@pytest.mark.parametrize(
    ("op", "dtype", "message"),
    [
        (Pointwise("add", (dense("x", 8),), dense("y", 8)), "float16", "no kernel computes add of 1 operands"),
        (Pointwise("silu", (dense("x", 8),), dense("y", 8)), "int64", "no kernel computes silu in int64"),
        (Pointwise("silu", (dense("x", 2**35),), dense("y", 2**35)), "float16", "use a smaller batch"),
    ],
    ids=["function", "dtype", "size"],
)
def test_what_no_kernel_takes(op, dtype, message):
    known = extents(x=((8,), dtype), y=((8,), "float16"))
    with pytest.raises(BackendError, match=message):
        launches_of(op, known, lambda name: 0, sms=1)


def test_axes_that_are_too_many():
    x = strided("x", (2, 3, 2, 3, 2, 3), (1, 2, 6, 12, 36, 72))
    known = extents(x=((216,), "float16"), y=((216,), "float16"))
    with pytest.raises(
        BackendError, match=r"no kernel computes over 6 axes: expected at most 5, got \(2, 3, 2, 3, 2, 3\)"
    ):
        launches_of(Copy((x,), 0, dense("y", 2, 3, 2, 3, 2, 3)), known, lambda name: 0, sms=1)

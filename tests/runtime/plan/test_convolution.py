from typing import Any

import numpy as np
import pytest

from saishiki.runtime.plan.ops import Convolution, Cost, InputNorm
from tests.runtime.plan.running import assert_computes, compute, draw, extents

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")

BATCH, HEIGHT, WIDTH, CHANNELS, FILTERS = 2, 5, 7, 8, 16
TAPS = {"1x1": (1, 1), "3x3": (3, 3), "1x3": (1, 3)}
STRIDES_AND_PADDINGS = {
    "unpadded": (1, (0, 0, 0, 0)),
    "same": (1, (1, 1, 1, 1)),
    "stride_2": (2, (1, 1, 1, 1)),
    "stride_2_below_and_right": (2, (0, 0, 1, 1)),
    "each_side_its_own": (1, (2, 0, 1, 3)),
}


def convolved(x: Any, weight: Any, *, stride: int = 1, padding: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Any:
    """torch's in fp64, NHWC in and out."""
    top, left, bottom, right = padding
    x, weight = (torch.from_numpy(array).double().permute(0, 3, 1, 2) for array in (x, weight))
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    return torch.nn.functional.conv2d(x, weight, stride=stride).permute(0, 2, 3, 1).numpy()


def operands(taps: tuple[int, int] = (3, 3), channels: int = CHANNELS) -> dict[str, Any]:
    weight = draw(FILTERS, *taps, channels, seed=1, scale=0.2)
    return {"x": draw(BATCH, HEIGHT, WIDTH, channels), "w": weight, "b": draw(FILTERS, seed=2)}


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize(("stride", "padding"), STRIDES_AND_PADDINGS.values(), ids=STRIDES_AND_PADDINGS)
@pytest.mark.parametrize("taps", TAPS.values(), ids=TAPS)
def test_convolution(taps, stride, padding, residual):
    arrays = operands(taps)
    truth = convolved(arrays["x"], arrays["w"], stride=stride, padding=padding) + arrays["b"]
    if residual:
        arrays["r"] = draw(*truth.shape, seed=3)
        truth = truth + arrays["r"]
    op = Convolution(("x",), "w", "b", "y", stride, padding, "r" if residual else None)
    assert op.reads() == ("x", "w", "b", "r")[: 3 + residual]
    assert_computes(op, arrays, {"y": truth})


def test_bias_of_each_picture_is_taken_from_its_offset_on():
    arrays = operands() | {"b": draw(BATCH, 40, seed=2)}
    truth = convolved(arrays["x"], arrays["w"]) + arrays["b"][:, None, None, 24:40].astype(np.float64)
    assert_computes(Convolution(("x",), "w", "b", "y", bias_offset=24), arrays, {"y": truth})


@pytest.mark.parametrize("rows", [1, 2])
def test_biases_of_pictures_are_taken_again_for_each_slot_of_guidance(rows):
    """Slots are the outer axis of a batch: pictures 0 and 1 of the first slot, then 0 and 1 of the second."""
    arrays = operands() | {"x": draw(3 * rows, HEIGHT, WIDTH, CHANNELS), "b": draw(rows, 40, seed=2)}
    each = np.concatenate([arrays["b"]] * 3)[:, None, None, 8:24].astype(np.float64)
    truth = convolved(arrays["x"], arrays["w"]) + each
    assert_computes(Convolution(("x",), "w", "b", "y", bias_offset=8), arrays, {"y": truth})


def test_pictures_that_are_no_multiple_of_the_rows_of_biases():
    arrays = operands() | {"x": draw(3, HEIGHT, WIDTH, CHANNELS), "b": draw(2, FILTERS, seed=2)}
    with pytest.raises(ValueError, match="broadcast"):
        compute(Convolution(("x",), "w", "b", "y"), arrays, {"y": (3, 3, 5, FILTERS)})


@pytest.mark.parametrize("channels", [(3,), (3, 4)], ids=["one", "two"])
def test_images_of_the_interface_side_by_side(channels):
    """They are rounded to fp16 as they are read, and the weight has more channels than they have."""
    names = ("left", "right")[: len(channels)]
    drawn = [draw(BATCH, count, HEIGHT, WIDTH, seed=5 + count, dtype="float32") for count in channels]
    weight = operands(channels=16)["w"]
    weight[..., sum(channels) :] = 0
    arrays = {"w": weight, "b": draw(FILTERS, seed=2), **dict(zip(names, drawn, strict=True))}
    x = np.zeros((BATCH, HEIGHT, WIDTH, 16))
    x[..., : sum(channels)] = np.concatenate(drawn, axis=1).transpose(0, 2, 3, 1).astype(np.float16)
    truth = convolved(x, weight, padding=(1, 1, 1, 1)) + arrays["b"]
    op = Convolution(names, "w", "b", "y", padding=(1, 1, 1, 1), from_images=True)
    assert op.reads() == (*names, "w", "b")
    assert_computes(op, arrays, {"y": truth})
    unrounded = np.zeros((BATCH, HEIGHT, WIDTH, 16))
    unrounded[..., : sum(channels)] = np.concatenate(drawn, axis=1).transpose(0, 2, 3, 1)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_computes(op, arrays, {"y": convolved(unrounded, weight, padding=(1, 1, 1, 1)) + arrays["b"]})


def test_images_of_an_fp32_plan_are_not_rounded():
    image, weight = draw(BATCH, 3, HEIGHT, WIDTH, dtype="float32"), draw(8, 3, 3, 3, seed=1, dtype="float32")
    arrays = {"image": image, "w": weight, "b": draw(8, dtype="float32")}
    truth = convolved(image.transpose(0, 2, 3, 1), weight) + arrays["b"]
    assert_computes(Convolution(("image",), "w", "b", "y", from_images=True), arrays, {"y": truth})


def test_an_image_of_the_interface_has_fewer_channels_and_rounded_numbers():
    arrays = operands()
    truth = (convolved(arrays["x"], arrays["w"]) + arrays["b"]).transpose(0, 3, 1, 2)[:, :3]
    written = compute(Convolution(("x",), "w", "b", "y", to_image=True), arrays, {"y": truth.shape})["y"]
    np.testing.assert_allclose(written, truth, rtol=2**-11, atol=1e-5)
    assert (written == written.astype(np.float16)).all()
    assert (written != truth.astype(np.float32)).mean() > 0.9


@pytest.mark.parametrize("silu", [True, False])
def test_a_norm_in_front_is_rounded_and_ends_before_the_padding(silu):
    arrays = operands() | {
        "s": draw(BATCH, 2, 2, seed=7, dtype="float32"),
        "nw": draw(CHANNELS, seed=8, dtype="float32"),
    }
    arrays["nb"] = draw(CHANNELS, seed=9, mean=1.0, dtype="float32")
    mean, rstd = (arrays["s"][..., i].repeat(CHANNELS // 2, 1)[:, None, None].astype(np.float64) for i in range(2))
    normalised = (arrays["x"] - mean) * rstd * arrays["nw"] + arrays["nb"]
    if silu:
        normalised = normalised / (1 + np.exp(-normalised))
    op = Convolution(("x",), "w", "b", "y", padding=(1, 1, 1, 1), norm=InputNorm("s", "nw", "nb", silu))
    assert op.reads() == ("x", "w", "b", "s", "nw", "nb")
    truth = convolved(normalised.astype(np.float16), arrays["w"], padding=(1, 1, 1, 1)) + arrays["b"]
    assert_computes(op, arrays, {"y": truth})
    unrounded = convolved(normalised, arrays["w"], padding=(1, 1, 1, 1)) + arrays["b"]
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_computes(op, arrays, {"y": unrounded})


def test_cost():
    op = Convolution(("x",), "w", "b", "y", padding=(1, 1, 1, 1), residual="r")
    half = {"x": (2, 5, 7, 8), "w": (16, 3, 3, 8), "b": (16,), "y": (2, 5, 7, 16), "r": (2, 5, 7, 16)}
    tensors = extents(**{name: (shape, "float16") for name, shape in half.items()})
    assert op.cost(tensors) == Cost(2 * 2 * 35 * 16 * 72, 1120 + 2304 + 32 + 2240 + 2240)


def test_cost_at_the_interface_counts_the_channels_of_the_images():
    op = Convolution(("left", "right"), "w", "b", "y", from_images=True, to_image=True)
    tensors = extents(
        left=((2, 3, 5, 7), "float32"),
        right=((2, 4, 5, 7), "float32"),
        w=((8, 1, 1, 16), "float16"),
        b=((8,), "float16"),
        y=((2, 3, 5, 7), "float32"),
    )
    assert op.cost(tensors) == Cost(2 * 2 * 35 * 3 * 7, 840 + 1120 + 256 + 840 + 3 * 2)

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from msgspec.structs import replace

from saishiki.runtime.backends.launches import launches_of
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.ops import Convolution, InputNorm
from tests.runtime.backends.launches.launched import assert_launches_compute, assert_near, computed, launched
from tests.runtime.plan.running import draw, extents

BATCH, HEIGHT, WIDTH, CHANNELS, FILTERS, GROUPS = 2, 5, 7, 24, 16, 3
NORM = InputNorm("s", "nw", "nb", True)
OP = Convolution(("x",), "w", "b", "y", 1, (1, 1, 1, 1), "r", norm=NORM)
OUT = {"y": (BATCH, HEIGHT, WIDTH, FILTERS)}


def operands():
    """Statistics that no norm of x has: they are taken as they are given, and each picture has its own."""
    statistics = draw(BATCH, GROUPS, 2, seed=4, dtype="float32")
    statistics[..., 1] = np.abs(statistics[..., 1]) + 0.5
    return {
        "x": draw(BATCH, HEIGHT, WIDTH, CHANNELS, mean=0.5),
        "w": draw(FILTERS, 3, 3, CHANNELS, seed=1, scale=0.1),
        "b": draw(FILTERS, seed=2),
        "r": draw(*OUT["y"], seed=3),
        "s": statistics,
        "nw": draw(CHANNELS, seed=5, mean=1.0, dtype="float32"),
        "nb": draw(CHANNELS, seed=6, dtype="float32"),
    }


@pytest.mark.parametrize("silu", [True, False])
def test_a_norm_in_front(silu):
    op = replace(OP, norm=replace(NORM, silu=silu))
    assert_launches_compute(op, operands(), OUT, kernels=["convolution_norm_64x64_fp16"], floor=2.0**-12)


@pytest.mark.parametrize("change", [{"silu": False}, {"bias": "nw"}])
def test_another_norm_is_seen(change):
    nothing = {"y": np.full(OUT["y"], np.nan, "float16")}
    got, _ = launched(replace(OP, norm=replace(NORM, **change)), operands(), nothing)
    with pytest.raises(AssertionError, match="y"):
        assert_near(got, computed(OP, operands(), nothing), floor=2.0**-12)


def test_a_residual_beside_images_of_the_interface():
    """As the features of a sketch are added to a denoiser's first convolution."""
    pictures = {
        name: draw(BATCH, 4, HEIGHT, WIDTH, seed=seed, dtype="float32") for seed, name in enumerate(("x", "x2"))
    }
    weights = {"w": draw(FILTERS, 3, 3, 8, seed=2, scale=0.1), "b": draw(FILTERS, seed=3), "r": draw(*OUT["y"], seed=4)}
    op = Convolution(("x", "x2"), "w", "b", "y", 1, (1, 1, 1, 1), "r", from_images=True)
    assert_launches_compute(op, {**pictures, **weights}, OUT, kernels=["convolution_from_images_fp16"], floor=2.0**-12)


def test_images_of_the_interface_are_read_without_norm():
    known = extents(
        **{name: (array.shape, str(array.dtype)) for name, array in operands().items()}, y=(OUT["y"], "float16")
    )
    with pytest.raises(BackendError, match="no kernel reads images and normalises them"):
        launches_of(replace(OP, from_images=True), known, lambda name: 0, sms=1)
    with pytest.raises(ValueError, match="without residual and norm"):
        launches_of(replace(OP, to_image=True, residual=None), known, lambda name: 0, sms=1)

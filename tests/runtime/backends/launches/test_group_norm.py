import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.runtime.backends.cubins import find_cubin, packed_arguments, read_cubin_index
from saishiki.runtime.backends.launches import launches_of
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.ops import NormApply, NormInput, NormStatistics
from tests.runtime.backends.launches.launched import (
    assert_launches_compute,
    assert_near,
    computed,
    launched,
)
from tests.runtime.plan.running import draw, extents

GROUPS, EPSILON = 8, 1e-5
BATCH, HEIGHT, WIDTH = 2, 3, 6


def image(channels, *, seed=0, mean=30.0):
    return draw(BATCH, HEIGHT, WIDTH, channels, seed=seed, mean=mean)


@pytest.mark.parametrize("width", [2, 10, 30])
def test_statistics_of_any_width(width):
    op = NormStatistics(NormInput("x"), "s", GROUPS, EPSILON)
    kernels = ["group_norm_silu_statistics_nhwc_fp16"]
    arrays = {"x": image(GROUPS * width)}
    assert_launches_compute(op, arrays, {"s": (BATCH, GROUPS, 2)}, kernels=kernels, dtype="float32")


@pytest.mark.parametrize(
    ("norm_input", "channels", "name"),
    [(NormInput("x", concat="c"), (48, 32), "concat"), (NormInput("x", residual="c"), (80, 80), "residual")],
    ids=["concat", "residual"],
)
def test_both_halves_of_what_is_put_together(norm_input, channels, name):
    arrays = {"x": image(channels[0], mean=3.0), "c": image(channels[1], seed=1, mean=-2.0)}
    statistics = NormStatistics(norm_input, "s", GROUPS, EPSILON)
    kernels = [f"group_norm_silu_statistics_{name}_nhwc_fp16"]
    assert_launches_compute(statistics, arrays, {"s": (BATCH, GROUPS, 2)}, kernels=kernels, dtype="float32")
    arrays |= {"w": draw(80, seed=2, dtype="float32"), "b": draw(80, seed=3, dtype="float32")}
    arrays |= {"s": draw(BATCH, GROUPS, 2, seed=4, mean=1.0, dtype="float32")}
    shape = (BATCH, HEIGHT, WIDTH, 80)
    apply = NormApply(norm_input, "s", "w", "b", "y", silu=True, dense="u")
    kernels = [f"group_norm_silu_apply_{name}_input_nhwc_fp16"]
    assert_launches_compute(apply, arrays, {"y": shape, "u": shape}, kernels=kernels)


@pytest.mark.parametrize("channels", [128, 256, 320, 512, 640, 960, 1280, 1920, 2560])
def test_every_norm_of_stable_diffusion_has_a_kernel(channels):
    """Of its U-Nets and VAEs, all in 32 groups."""
    op = NormStatistics(NormInput("x"), "s", 32, EPSILON)
    known = extents(x=((2, 64, 64, channels), "float16"), s=((2, 32, 2), "float32"))
    (launch,) = launches_of(op, known, lambda name: 0, sms=132)
    for target in ("sm80", "sm86", "sm89", "sm90", "sm120"):
        packed_arguments(find_cubin(read_cubin_index(), launch.kernel, target), launch.arguments)


def test_other_groups_are_seen():
    op, arrays = NormStatistics(NormInput("x"), "s", GROUPS, EPSILON), {"x": image(80)}
    nothing = {"s": np.full((BATCH, GROUPS, 2), np.nan, "float32")}
    got, _ = launched(op, {"x": np.roll(arrays["x"], 1, axis=3)}, nothing)
    with pytest.raises(AssertionError, match="s"):
        assert_near(got, computed(op, arrays, nothing))
    got, _ = launched(msgspec.structs.replace(op, epsilon=0.1), arrays, nothing)
    with pytest.raises(AssertionError, match="s"):
        assert_near(got, computed(op, arrays, nothing))


@pytest.mark.parametrize(("own", "more"), [(40, 0), (24, 40)])
def test_channels_that_no_kernel_takes(own, more):
    known = extents(x=((1, 2, 2, own), "float16"), c=((1, 2, 2, more), "float16"), s=((1, 4, 2), "float32"))
    norm_input = NormInput("x", concat="c" if more else None)
    for op in (NormStatistics(norm_input, "s", 4, EPSILON), NormApply(norm_input, "s", "w", "b", "y", True)):
        with pytest.raises(BackendError, match=f"{own + more} channels of which {own} are of x: expected multiples of"):
            launches_of(op, known, lambda name: 0, sms=1)

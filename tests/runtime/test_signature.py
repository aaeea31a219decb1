import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saishiki.runtime.signature import (
    Profile,
    Signature,
    TensorSpec,
    multiples_of,
    profiles_for,
    resolve_dim,
    symbols_of,
)

IMAGE = ("batch", "3", "height", "width")
PIXELS = Signature(
    inputs=(TensorSpec("noisy", "float32", IMAGE), TensorSpec("time", "float32", ("batch", "5"))),
    outputs=(TensorSpec("eps", "float32", IMAGE),),
    multiples={"height": 4, "width": 4},
)
LATENTS = Signature(
    inputs=(TensorSpec("x", "float16", ("batch", "4", "height/8", "width/8")),),
    outputs=(TensorSpec("image", "float32", IMAGE), TensorSpec("tokens", "float32", ("batch", "height/8*width/8"))),
    multiples={"height": 8, "width": 8},
)


def inputs(batch=2, height=8, width=12, *, time=5, dtype=np.float32):
    return {"noisy": np.zeros((batch, 3, height, width), dtype), "time": np.zeros((batch, time), np.float32)}


def test_resolve_dim():
    sizes = {"height": 256, "width": 64, "batch": 3}
    assert [resolve_dim(dim, sizes) for dim in ("7", "height", "height/8", "2*batch", "height/8*width/8")] == [
        7,
        256,
        32,
        6,
        256,
    ]


def test_resolve_dim_with_a_remainder():
    with pytest.raises(ValueError, match=r"height/8 is not a whole number at \{'height': 12\}"):
        resolve_dim("height/8", {"height": 12})


def test_resolve_dim_of_an_unknown_symbol():
    with pytest.raises(KeyError, match="tokens"):
        resolve_dim("tokens", {"height": 8})


@pytest.mark.parametrize("dim", ["", "height-8", "1 + height", "-1", "0"])
def test_resolve_dim_refuses_what_is_no_dim(dim):
    with pytest.raises(ValueError, match=r"expected a dim such as 3, height or height/8, got"):
        resolve_dim(dim, {"height": 8})


def test_symbols_of():
    assert symbols_of("2*height/8*width") == ("height", "width")
    assert symbols_of("77") == ()


@pytest.mark.parametrize("dim", ["", "height-8", "height/", "/8", "height/0", "Height", "2 * batch", "-1", "0"])
def test_tensor_spec_refuses_a_malformed_dim(dim):
    with pytest.raises(ValueError, match=r"x: expected a dim such as 3, height or height/8, got"):
        TensorSpec("x", "float32", ("batch", dim))


def test_tensor_spec_refuses_an_unknown_dtype():
    with pytest.raises(TypeError, match="float33"):
        TensorSpec("x", "float33", ("batch",))


def test_tensor_spec_sizes():
    spec = LATENTS.inputs[0]
    sizes = {"batch": 2, "height": 32, "width": 16}
    assert spec.shape(sizes) == (2, 4, 4, 2)
    assert spec.nbytes(sizes) == 2 * 2 * 4 * 4 * 2
    assert str(spec) == "x: float16 (batch, 4, height/8, width/8)"


def test_signature_symbols_are_in_order():
    assert PIXELS.symbols == LATENTS.symbols == ("batch", "height", "width")


def test_sizes_from_arrays():
    assert PIXELS.sizes_from_arrays(inputs()) == {"batch": 2, "height": 8, "width": 12}


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
def test_sizes_from_arrays_solves_for_a_divided_symbol(batch, rows, columns):
    sizes = LATENTS.sizes_from_arrays({"x": np.zeros((batch, 4, rows, columns), np.float16)})
    assert sizes == {"batch": batch, "height": 8 * rows, "width": 8 * columns}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"noisy": np.zeros((1, 3, 4, 4), np.float32)}, r"expected the inputs \['noisy', 'time'\], got \['noisy'\]"),
        (inputs() | {"more": np.zeros(1)}, r"got \['more', 'noisy', 'time'\]"),
        (inputs(dtype=np.float64), r"expected noisy: float32 \(batch, 3, height, width\), got float64 \(2, 3, 8, 12\)"),
        (inputs() | {"noisy": np.zeros((2, 3, 8), np.float32)}, r"expected noisy: .*, got float32 \(2, 3, 8\)"),
        (inputs() | {"noisy": np.zeros((2, 4, 8, 12), np.float32)}, r"expected noisy: .*, got \(2, 4, 8, 12\)"),
        (inputs() | {"time": np.zeros((1, 5), np.float32)}, r"expected time: .*, got \(1, 5\) with .*'batch': 2"),
        (inputs(time=6), r"expected time: float32 \(batch, 5\), got \(2, 6\)"),
        (inputs(height=6), "height must be a positive multiple of 4, got 6"),
        (inputs(batch=0), "batch must be a positive multiple of 1, got 0"),
    ],
)
def test_sizes_from_arrays_refuses(arrays, message):
    with pytest.raises(ValueError, match=message):
        PIXELS.sizes_from_arrays(arrays)


def test_sizes_from_arrays_of_a_signature_that_leaves_a_size_open():
    signature = Signature((TensorSpec("x", "float32", ("height*width",)),), (), {})
    with pytest.raises(ValueError, match=r"no input tells the sizes \['height', 'width'\]"):
        signature.sizes_from_arrays({"x": np.zeros(6, np.float32)})


PROFILE = Profile(
    {"batch": 1, "height": 8, "steps": 1},
    {"batch": 1, "height": 16, "steps": 1},
    {"batch": 4, "height": 16, "steps": 9},
)


@pytest.mark.parametrize(
    ("sizes", "holds"),
    [
        ({"batch": 4, "height": 8}, True),
        ({"batch": 5, "height": 8}, False),
        ({"batch": 1, "height": 7}, False),
        ({"width": 10**6}, True),
    ],
)
def test_profile_holds(sizes, holds):
    assert PROFILE.holds(sizes) is holds


def test_profile_corners_are_distinct():
    assert PROFILE.corners() == (PROFILE.min, PROFILE.opt, PROFILE.max)
    one = {"batch": 1}
    assert Profile(one, one, one).corners() == (one,)


def test_profile_reads_well():
    assert str(PROFILE) == "batch 1..1..4, height 8..16..16, steps 1..1..9"
    assert str(Profile({"batch": 2}, {"batch": 2}, {"batch": 2})) == "batch 2"


@pytest.mark.parametrize(
    ("least", "best", "most"),
    [
        ({"batch": 2}, {"batch": 1}, {"batch": 4}),
        ({"batch": 1}, {"batch": 5}, {"batch": 4}),
        ({"batch": 0}, {"batch": 1}, {"batch": 1}),
        ({"batch": 1}, {"batch": 1, "height": 8}, {"batch": 1}),
    ],
)
def test_profile_must_ascend(least, best, most):
    with pytest.raises(ValueError, match="a profile must ascend from min over opt to max, got"):
        Profile(least, best, most)


def test_profiles_for_keeps_the_own_symbols_and_drops_doubles():
    wider = Profile(*({"batch": 1, "height": 8, "steps": steps} for steps in (1, 2, 3)))
    narrower = Profile(*({"batch": 1, "height": 8, "steps": steps} for steps in (1, 1, 1)))
    signature = Signature((TensorSpec("x", "float32", ("batch", "height")),), (), {})
    point = {"batch": 1, "height": 8}
    assert profiles_for(signature, (wider, narrower)) == (Profile(point, point, point),)


def test_multiples_of_several_modules():
    wide = Signature((), (), {"width": 12})
    assert multiples_of([PIXELS, LATENTS, wide]) == {"height": 8, "width": 24}
    assert multiples_of([]) == {}

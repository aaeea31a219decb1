import numpy as np
import pytest

from saishiki.runtime.plan.ops import Cost, NormApply, NormInput, NormStatistics
from tests.runtime.plan.running import assert_computes, assert_rounded_once, compute, draw, extents

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")

GROUPS, EPSILON = 4, 1e-5
BATCH, HEIGHT, WIDTH, CHANNELS = 2, 3, 5, 8
INPUTS = {
    "plain": NormInput("x"),
    "concat": NormInput("x", concat="c"),
    "upsample": NormInput("x", upsample=True),
    "residual": NormInput("x", residual="r"),
    "all": NormInput("x", concat="c", upsample=True, residual="r"),
}

each_input = pytest.mark.parametrize("norm_input", INPUTS.values(), ids=INPUTS)


def operands(norm_input, *, mean=0.5, channels=CHANNELS):
    """Arrays of a norm, and u in fp64, its pixels repeated by indexing."""
    scale = 2 if norm_input.upsample else 1
    pixels = scale * HEIGHT, scale * WIDTH
    arrays = {"x": draw(BATCH, HEIGHT, WIDTH, channels, mean=mean)}
    rows, columns = (np.arange(size) // scale for size in pixels)
    u = arrays["x"][:, rows][:, :, columns].astype(np.float64)
    if norm_input.concat:
        arrays["c"] = draw(BATCH, *pixels, channels // 2, seed=1, mean=-1.0)
        u = np.concatenate([u, arrays["c"]], axis=3)
    if norm_input.residual:
        arrays["r"] = draw(*u.shape, seed=2)
        u = u + arrays["r"]
    arrays["w"] = draw(u.shape[3], seed=3, mean=1.0, dtype="float32")
    arrays["b"] = draw(u.shape[3], seed=4, dtype="float32")
    return arrays, u


def moments(u):
    """(B, groups, 2) fp64."""
    numbers = torch.from_numpy(u).reshape(len(u), -1, GROUPS, u.shape[-1] // GROUPS)
    variance, mean = torch.var_mean(numbers, dim=(1, 3), correction=0)
    return torch.stack([mean, (variance + EPSILON).rsqrt()], dim=2).numpy()


def normalised(arrays, u, *, silu):
    """torch's in fp64, channels last in and out."""
    weight, bias = (torch.from_numpy(arrays[name]).double() for name in ("w", "b"))
    y = torch.nn.functional.group_norm(torch.from_numpy(u).moveaxis(-1, 1), GROUPS, weight, bias, EPSILON)
    return (torch.nn.functional.silu(y) if silu else y).moveaxis(1, -1).numpy()


def apply_of(norm_input, *, silu, dense=None):
    return NormApply(norm_input, "s", "w", "b", "y", silu, dense)


@each_input
def test_statistics(norm_input):
    arrays, u = operands(norm_input)
    op = NormStatistics(norm_input, "s", GROUPS, EPSILON)
    assert op.reads() == norm_input.names()
    assert_computes(op, arrays, {"s": moments(u)})


@each_input
@pytest.mark.parametrize("silu", [False, True], ids=["linear", "silu"])
@pytest.mark.parametrize("dense", [None, "u"], ids=["", "dense"])
def test_apply(norm_input, silu, dense):
    arrays, u = operands(norm_input)
    arrays["s"] = moments(u).astype(np.float32)
    op = apply_of(norm_input, silu=silu, dense=dense)
    assert op.reads() == (*norm_input.names(), "s", "w", "b")
    truth = {"y": normalised(arrays, u, silu=silu)} | ({"u": u} if dense else {})
    assert_computes(op, arrays, truth)


def test_both_of_a_large_mean():
    """A variance of 1 about 1000, as E[u^2] - E[u]^2 would lose it in fp32."""
    norm_input = NormInput("x")
    arrays, _ = operands(norm_input)
    arrays["x"] = draw(BATCH, 31, 33, CHANNELS, mean=1000.0)
    u = arrays["x"].astype(np.float64)
    truth = moments(u)
    shape = {"s": truth.shape}
    arrays["s"] = compute(NormStatistics(norm_input, "s", GROUPS, EPSILON), arrays, shape)["s"]
    np.testing.assert_allclose(arrays["s"], truth, rtol=1e-6)
    numbers = arrays["x"].astype(np.float32).reshape(BATCH, -1, GROUPS, 2)
    naive = (numbers**2).mean(axis=(1, 3)) - numbers.mean(axis=(1, 3)) ** 2
    assert np.abs(naive * truth[..., 1] ** 2 - 1).max() > 1e-3
    assert_computes(apply_of(norm_input, silu=False), arrays, {"y": normalised(arrays, u, silu=False)}, tolerance=4e-5)


def test_tokens_have_one_axis_of_pixels():
    arrays, u = operands(NormInput("x"))
    arrays["x"], u = (array.reshape(BATCH, -1, CHANNELS) for array in (arrays["x"], u))
    arrays["s"] = moments(u).astype(np.float32)
    assert_computes(NormStatistics(NormInput("x"), "s", GROUPS, EPSILON), arrays, {"s": moments(u)})
    assert_computes(apply_of(NormInput("x"), silu=True), arrays, {"y": normalised(arrays, u, silu=True)})


def test_silu_far_from_zero():
    """exp(-y) would overflow at y = -1000."""
    arrays = {
        "x": np.array([[[-1.0] * 4 + [1.0] * 4]], np.float16),
        "s": np.array([[[0.0, 1000.0]] * GROUPS], np.float32),
        "w": np.ones(8, np.float32),
        "b": np.zeros(8, np.float32),
    }
    with np.errstate(all="raise", under="ignore"):
        y = compute(apply_of(NormInput("x"), silu=True), arrays, {"y": (1, 1, 8)})["y"]
    assert y.tolist() == [[[0.0] * 4 + [1000.0] * 4]]


def test_dense_is_rounded_once():
    """The sum of two fp16 numbers, one of them much smaller."""
    arrays, _ = operands(NormInput("x", residual="r"))
    arrays["r"] = draw(*arrays["x"].shape, seed=5, scale=2.0**-8)
    u = arrays["x"].astype(np.float64) + arrays["r"]
    arrays["s"] = moments(u).astype(np.float32)
    op = apply_of(NormInput("x", residual="r"), silu=True, dense="u")
    written = compute(op, arrays, {"y": u.shape, "u": u.shape}, dtype="float16")
    assert_rounded_once(written["u"], u)


def test_cost():
    norm_input = INPUTS["all"]
    shapes = {"x": (2, 3, 5, 8), "c": (2, 6, 10, 4), "r": (2, 6, 10, 12), "y": (2, 6, 10, 12), "u": (2, 6, 10, 12)}
    tensors = extents(
        s=((2, 4, 2), "float32"),
        w=((12,), "float32"),
        b=((12,), "float32"),
        **{name: (shape, "float16") for name, shape in shapes.items()},
    )
    read = 480 + 960 + 2880
    assert NormStatistics(norm_input, "s", GROUPS, EPSILON).cost(tensors) == Cost(0, read + 64)
    assert apply_of(norm_input, silu=True).cost(tensors) == Cost(0, read + 64 + 48 + 48 + 2880)
    assert apply_of(norm_input, silu=True, dense="u").cost(tensors) == Cost(0, read + 64 + 48 + 48 + 2 * 2880)

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.runtime.backends.launches import launches_of
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.ops import MaskedSplitCrossAttention, RegionOrder, SplitProjection
from tests.runtime.backends.interpreted_device import SHARED_BYTES, InterpretedDevice
from tests.runtime.backends.launches.launched import assert_launches_compute, assert_near, computed, launched
from tests.runtime.plan.running import dense, draw, extents, strided

BATCH, HEADS, WIDTH, TOKENS, KEYS, FOREGROUND = 2, 2, 64, 70, 70, 41
CHANNELS = HEADS * WIDTH
THRESHOLD = 0.05
FLOOR = 2.0**-11
"""The kernel of attention rounds the probabilities to fp16."""

each_rule = pytest.mark.parametrize("at_threshold", [False, True], ids=["above", "not_below"])


def mask(tokens=TOKENS):
    """One row of both regions and with numbers at the threshold, one of mostly one region."""
    at = np.float32(THRESHOLD)
    near = np.array([np.nextafter(at, -1), at, np.nextafter(at, 1)], np.float32)
    return np.stack([near[np.arange(tokens) % 3], (np.arange(tokens) == 7).astype(np.float32)])


def order_of(mask, at_threshold):
    op = RegionOrder(dense("mask", *mask.shape), "order", THRESHOLD, at_threshold)
    return computed(op, {"mask": mask}, {"order": np.zeros(mask.shape, np.int32)})["order"]


# Order


@each_rule
@pytest.mark.parametrize("tokens", [1, 1023, 2500])
def test_region_order(tokens, at_threshold):
    op = RegionOrder(dense("mask", BATCH, tokens), "order", THRESHOLD, at_threshold)
    nothing = {"order": np.full((BATCH, tokens), -1, np.int32)}
    got, kernels = launched(op, {"mask": mask(tokens)}, nothing)
    assert kernels == ["region_order"]
    np.testing.assert_array_equal(got["order"], computed(op, {"mask": mask(tokens)}, nothing)["order"])


def test_region_order_of_a_part_of_a_buffer():
    op = RegionOrder(strided("masks", (BATCH, 40), (40, 1), 80), "order", THRESHOLD, False)
    arrays, nothing = {"masks": draw(4, 40, dtype="float32")}, {"order": np.full((BATCH, 40), -1, np.int32)}
    got, _ = launched(op, arrays, nothing)
    np.testing.assert_array_equal(got["order"], computed(op, arrays, nothing)["order"])


# Attention


def attention(at_threshold=False, **changes):
    shapes = {"q": (BATCH, TOKENS, CHANNELS), "k": (BATCH, KEYS, CHANNELS), "v": (BATCH, KEYS, CHANNELS)}
    parts = {name: dense(name, *shape) for name, shape in shapes.items()}
    arguments = {**parts, "mask": dense("mask", BATCH, TOKENS), "foreground_tokens": str(FOREGROUND), **changes}
    return MaskedSplitCrossAttention(
        order="order", out="y", heads=HEADS, threshold=THRESHOLD, foreground_at_threshold=at_threshold, **arguments
    )


def operands(at_threshold=False):
    return {
        "q": draw(BATCH, TOKENS, CHANNELS, scale=2.0),
        "k": draw(BATCH, KEYS, CHANNELS, seed=1),
        "v": draw(BATCH, KEYS, CHANNELS, seed=2),
        "mask": mask(),
        "order": order_of(mask(), at_threshold),
    }


Y = {"y": (BATCH, TOKENS, CHANNELS)}
PLAIN, MERGE = "masked_split_cross_attention_d64_fp16", "masked_split_cross_attention_merge_d64_fp16"
MERGING = {"share": np.array([0.3], np.float32)}
SCALES = {"foreground_scale": 0.75, "background_scale": 1.5}


@each_rule
def test_attention_by_region(at_threshold):
    op = attention(at_threshold, **SCALES)
    assert_launches_compute(op, operands(at_threshold), Y, kernels=[PLAIN], floor=FLOOR)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_attention_merges_by_a_share_in_memory(share):
    """With queries of their own for the background, each the half of longer rows; as keys and values lie."""
    own = operands()
    arrays = {
        "qq": draw(BATCH, TOKENS, 2 * CHANNELS, seed=3, scale=2.0),
        "kv": np.concatenate([own["k"], own["v"]], axis=2),
        "share": np.array([share], np.float32),
        **{name: own[name] for name in ("mask", "order")},
    }
    q, background_q = (
        strided("qq", Y["y"], (TOKENS * 2 * CHANNELS, 2 * CHANNELS, 1), place * CHANNELS) for place in range(2)
    )
    k, v = (
        strided("kv", (BATCH, KEYS, CHANNELS), (KEYS * 2 * CHANNELS, 2 * CHANNELS, 1), place * CHANNELS)
        for place in range(2)
    )
    op = attention(q=q, k=k, v=v, background_q=background_q, merge_scale="share", **SCALES)
    assert_launches_compute(op, arrays, Y, kernels=[MERGE], floor=FLOOR)


def test_attention_merges_with_the_same_queries():
    assert_launches_compute(attention(merge_scale="share"), operands() | MERGING, Y, kernels=[MERGE], floor=FLOOR)


def test_rows_may_share_keys():
    arrays = operands() | {"k": draw(KEYS, CHANNELS, seed=1), "v": draw(KEYS, CHANNELS, seed=2)}
    k, v = (strided(name, (BATCH, KEYS, CHANNELS), (0, CHANNELS, 1)) for name in ("k", "v"))
    assert_launches_compute(attention(k=k, v=v), arrays, Y, kernels=[PLAIN], floor=FLOOR)


@pytest.fixture(scope="module", params=[None, "share"], ids=["plain", "merge"])
def attended(request):
    """An operation, its operands, and what its kernel computes of them."""
    op, arrays = attention(merge_scale=request.param), operands() | MERGING
    got, _ = launched(op, arrays, {"y": np.full(Y["y"], np.nan, "float16")})
    return op, arrays, got


@pytest.mark.parametrize(
    "wrong",
    [
        {"foreground_at_threshold": True},
        {"foreground_tokens": "40"},
        {"k": dense("v", BATCH, KEYS, CHANNELS)},
        {"foreground_scale": 0.9},
    ],
    ids=lambda wrong: "_".join(wrong),
)
def test_another_attention_by_region_is_seen(attended, wrong):
    op, arrays, got = attended
    assert_near(got, computed(op, arrays, got), floor=FLOOR)
    with pytest.raises(AssertionError, match="y"):
        assert_near(got, computed(msgspec.structs.replace(op, **wrong), arrays, got), floor=FLOOR)


def test_swapped_regions_are_seen(attended):
    """The foreground's keys and values where the background's are expected, and the other way around."""
    op, arrays, got = attended
    swapped = arrays | {name: np.roll(arrays[name], -FOREGROUND, axis=1) for name in ("k", "v")}
    wrong = msgspec.structs.replace(op, foreground_tokens=str(KEYS - FOREGROUND))
    with pytest.raises(AssertionError, match="y"):
        assert_near(got, computed(wrong, swapped, got), floor=FLOOR)


def test_an_order_that_leaves_a_token_out_is_seen():
    arrays = operands()
    arrays["order"][0, 3] = arrays["order"][0, 4]
    nothing = {"y": np.full(Y["y"], np.nan, "float16")}
    got, _ = launched(attention(), arrays, nothing)
    assert np.isnan(got["y"]).any(axis=2).sum() == 1


# Projection


def projection(at_threshold=False, **changes):
    """Of the second half of each row."""
    x = strided("x", (BATCH, TOKENS, 96), (TOKENS * 192, 192, 1), 96)
    op = SplitProjection(x, "fg", "bg", dense("mask", BATCH, TOKENS), "order", "y", THRESHOLD, at_threshold)
    return msgspec.structs.replace(op, **changes)


def projected(at_threshold=False):
    weights = {"fg": draw(80, 96, seed=1), "bg": draw(80, 96, seed=2)}
    return {"x": draw(BATCH, TOKENS, 192), **weights, "mask": mask(), "order": order_of(mask(), at_threshold)}


Z = {"y": (BATCH, TOKENS, 80)}


@each_rule
def test_split_projection(at_threshold):
    op, arrays = projection(at_threshold), projected(at_threshold)
    assert_launches_compute(op, arrays, Z, kernels=["split_projection_fp16"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"foreground_weight": "bg", "background_weight": "fg"},
        {"foreground_at_threshold": True},
        {"x": strided("x", (BATCH, TOKENS, 96), (TOKENS * 192, 192, 1))},
    ],
    ids=lambda wrong: "_".join(wrong),
)
def test_another_split_projection_is_seen(wrong):
    nothing = {"y": np.full(Z["y"], np.nan, "float16")}
    got, _ = launched(projection(**wrong), projected(), nothing)
    with pytest.raises(AssertionError, match="y"):
        assert_near(got, computed(projection(), projected(), nothing))


# Every GPU


@pytest.mark.parametrize("target", SHARED_BYTES)
@pytest.mark.parametrize("width", [32, 64, 80, 128])
def test_every_gpu_has_the_kernels(width, target):
    """Arguments, alignment, grid and shared memory against the index; nothing runs."""
    device = InterpretedDevice(target=target, runs=False)
    shapes = {"q": (4, 16384, 5 * width), "k": (4, 514, 5 * width), "x": (4, 16384, 320), "w": (640, 320)}
    parts = {"q": dense("q", *shapes["q"]), "k": dense("k", *shapes["k"]), "v": dense("k", *shapes["k"])}
    by_region = {"mask": dense("mask", 4, 16384), "order": "order"}
    rule = {"threshold": 0.5, "foreground_at_threshold": False}
    ops = (
        RegionOrder(by_region["mask"], "order", **rule),
        MaskedSplitCrossAttention(**parts, **by_region, out="q", heads=5, foreground_tokens="257", **rule),
        MaskedSplitCrossAttention(
            **parts, **by_region, out="q", heads=5, foreground_tokens="257", merge_scale="share", **rule
        ),
        SplitProjection(dense("x", *shapes["x"]), "w", "w", **by_region, out="y", **rule),
    )
    tensors = {name: (shape, "float16") for name, shape in shapes.items()} | {
        "y": ((4, 16384, 640), "float16"),
        "mask": ((4, 16384), "float32"),
        "order": ((4, 16384), "int32"),
        "share": ((1,), "float32"),
    }
    known = extents(**tensors)
    held = {name: device.allocate(64) for name in tensors}
    for op in ops:
        for launch in launches_of(op, known, lambda name: held[name].address, sms=132):
            device.launch(launch.kernel, **launch.arguments)
    assert len(device.launched) == len(ops)


# What no kernel takes


def refuse(op, message, **tensors):
    shapes = {"q": (BATCH, TOKENS, CHANNELS), "k": (BATCH, KEYS, CHANNELS), "x": (BATCH, TOKENS, 192), "fg": (80, 96)}
    known = {name: (shape, "float16") for name, shape in shapes.items()}
    known |= {"v": known["k"], "bg": known["fg"], "y": known["q"]}
    known |= {"mask": ((BATCH, TOKENS), "float32"), "order": ((BATCH, TOKENS), "int32"), "share": ((1,), "float32")}
    with pytest.raises(BackendError, match=message):
        launches_of(op, extents(**(known | tensors)), lambda name: 0, sms=1)


def test_attention_by_region_refuses():
    refuse(attention(background_q=dense("q", *Y["y"])), "queries of the background where nothing is merged")
    refuse(msgspec.structs.replace(attention(), heads=8), "with heads of 16: expected 32, 64, 80, 128; use another")
    refuse(attention(), "takes v in float32", v=((BATCH, KEYS, CHANNELS), "float32"))
    refuse(attention(), "takes mask in float16", mask=((BATCH, TOKENS), "float16"))
    refuse(attention(), "takes order in int64", order=((BATCH, TOKENS), "int64"))
    refuse(attention(merge_scale="share"), "takes share in float16", share=((1,), "float16"))
    gaps = strided("mask", (BATCH, TOKENS), (TOKENS * 8, 8))
    refuse(attention(mask=gaps), r"reads the mask mask at strides \(560, 8\): expected 2 rows of 70 without gaps")
    others = strided("v", (BATCH, KEYS, CHANNELS), (KEYS * CHANNELS * 2, CHANNELS * 2, 1))
    refuse(attention(v=others), "to k and v whose strides differ")
    odd = strided("q", Y["y"], (TOKENS * CHANNELS, CHANNELS + 4, 1))
    refuse(attention(q=odd), "reads q at strides .8960, 132, 1.: expected numbers side by side")


def test_split_projection_refuses():
    x = dense("x", BATCH, TOKENS, 192)
    refuse(projection(), "projects 96 numbers of x to 72: expected multiples of 16", fg=((72, 96), "float16"))
    refuse(projection(x=msgspec.structs.replace(x, strides=("1", "2", "2"))), "numbers side by side")
    refuse(projection(), "takes bg in float32", bg=((80, 96), "float32"))


def test_region_order_refuses():
    op = RegionOrder(dense("mask", BATCH, TOKENS), "order", THRESHOLD, False)
    refuse(op, "takes order in float32", order=((BATCH, TOKENS), "float32"))
    refuse(op, "takes mask in float16", mask=((BATCH, TOKENS), "float16"))

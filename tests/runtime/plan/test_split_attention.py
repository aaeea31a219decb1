import numpy as np
import pytest
from msgspec.structs import replace

from saishiki.runtime.plan.ops import Cost, MaskedSplitCrossAttention, SplitProjection
from saishiki.runtime.plan.ops.regions import is_foreground
from tests.runtime.plan.running import assert_computes, compute, dense, draw, extents, strided

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

from saishiki.kernels import masked_split_cross_attention_reference, split_projection_reference  # noqa: E402

BATCH, TOKENS, HEADS, HEAD_WIDTH, KEYS, FOREGROUND = 2, 9, 3, 4, 5, 2
WIDTH = HEADS * HEAD_WIDTH
THRESHOLD = 0.05
SELECTIONS = {False: "foreground_above", True: "background_below"}

each_selection = pytest.mark.parametrize("at_threshold", SELECTIONS, ids=SELECTIONS.values())


def mask():
    """Below, at and above the threshold, as near to it as fp32 gets, in both rows in another order."""
    at = np.float32(THRESHOLD)
    near = np.array([np.nextafter(at, -1), at, np.nextafter(at, 1)], np.float32)
    return np.stack([near[np.arange(TOKENS) % 3], near[np.arange(TOKENS) // 3]])


def operands():
    return {
        "q": draw(BATCH, TOKENS, WIDTH, scale=2.0),
        "k": draw(BATCH, KEYS, WIDTH, seed=1),
        "v": draw(BATCH, KEYS, WIDTH, seed=2),
        "mask": mask(),
        "order": order(),
    }


def order():
    """Any permutation gives the same."""
    return np.random.default_rng(7).permuted(np.tile(np.arange(TOKENS, dtype=np.int32), (BATCH, 1)), axis=1)


def attention(at_threshold, **options):
    shapes = {"q": (BATCH, TOKENS, WIDTH), "k": (BATCH, KEYS, WIDTH), "v": (BATCH, KEYS, WIDTH)}
    parts = {name: dense(name, *shape) for name, shape in shapes.items()}
    arguments = {**parts, "mask": dense("mask", BATCH, TOKENS), "foreground_tokens": str(FOREGROUND), **options}
    return MaskedSplitCrossAttention(
        order="order", out="y", heads=HEADS, threshold=THRESHOLD, foreground_at_threshold=at_threshold, **arguments
    )


def attended(arrays, at_threshold, **options):
    """The kernel's reference in fp64, with the mask in fp32."""
    exact = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    exact |= {name: tensor.double() for name, tensor in exact.items() if name not in ("mask", "order")}
    arguments = {"selection": SELECTIONS[at_threshold], "threshold": THRESHOLD, "fg_tokens": FOREGROUND, **options}
    return masked_split_cross_attention_reference(**exact, heads=HEADS, **arguments)


@each_selection
def test_masked_split_cross_attention(at_threshold):
    arrays = operands()
    op = attention(at_threshold)
    assert op.reads() == ("q", "k", "v", "mask", "order")
    assert_computes(op, arrays, {"y": attended(arrays, at_threshold)})


@each_selection
def test_scales(at_threshold):
    arrays = operands()
    op = attention(at_threshold, foreground_scale=0.75, background_scale=1.5)
    assert_computes(op, arrays, {"y": attended(arrays, at_threshold, fg_scale=0.75, bg_scale=1.5)})


@each_selection
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_merge(at_threshold, share):
    arrays = operands()
    op = attention(at_threshold, merge_scale="share", foreground_scale=0.75, background_scale=1.5)
    assert op.reads() == ("q", "k", "v", "mask", "order", "share")
    truth = attended(arrays, at_threshold, merge_scale=share, fg_scale=0.75, bg_scale=1.5)
    assert_computes(op, arrays | {"share": np.array([share], np.float32)}, {"y": truth})


@each_selection
def test_background_tokens_with_queries_of_their_own(at_threshold):
    """Both queries packed into rows, and keys beside values."""
    own = operands()
    other = draw(BATCH, TOKENS, WIDTH, seed=3, scale=2.0)
    arrays = {
        "qq": np.concatenate([own["q"], other], axis=2),
        "kv": np.concatenate([own["k"], own["v"]], axis=2),
        "mask": own["mask"],
        "order": own["order"],
    }
    q, background_q = (strided("qq", (BATCH, TOKENS, WIDTH), (18 * WIDTH, 2 * WIDTH, 1), i * WIDTH) for i in (0, 1))
    k, v = (strided("kv", (BATCH, KEYS, WIDTH), (10 * WIDTH, 2 * WIDTH, 1), i * WIDTH) for i in (0, 1))
    op = attention(at_threshold, q=q, k=k, v=v, background_q=background_q)
    assert op.reads() == ("qq", "kv", "mask", "order")
    assert_computes(op, arrays, {"y": attended(own | {"q_bg": other}, at_threshold)})


def test_foreground_tokens_by_a_size():
    arrays = operands()
    op = attention(False, foreground_tokens="tokens/2")
    assert_computes(op, arrays, {"y": attended(arrays, False)}, sizes={"tokens": 2 * FOREGROUND})


@pytest.mark.parametrize(
    "changed",
    [
        {"foreground_tokens": "3"},
        {"foreground_at_threshold": True},
        {"threshold": 0.0500001},
        {"k": dense("v", BATCH, KEYS, WIDTH), "v": dense("k", BATCH, KEYS, WIDTH)},
        {"heads": 4},
    ],
    ids=lambda changed: "_".join(changed),
)
def test_a_change_is_seen(changed):
    arrays = operands()
    op = replace(attention(False), **changed)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_computes(op, arrays, {"y": attended(arrays, False)})


@each_selection
def test_split_projection(at_threshold):
    """x: part of longer rows."""
    arrays = {
        "x": draw(BATCH, TOKENS, WIDTH + 3),
        "fg": draw(5, WIDTH, seed=1),
        "bg": draw(5, WIDTH, seed=2),
        "mask": mask(),
        "order": order(),
    }
    x, *weights = (torch.from_numpy(arrays[name]).double() for name in ("x", "fg", "bg"))
    truth = split_projection_reference(
        x[..., 3:], *weights, torch.from_numpy(mask()), selection=SELECTIONS[at_threshold], threshold=THRESHOLD
    )
    op = projection(at_threshold)
    assert op.reads() == ("x", "fg", "bg", "mask", "order")
    assert_computes(op, arrays, {"y": truth})
    swapped = arrays | {"fg": arrays["bg"], "bg": arrays["fg"]}
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_computes(op, swapped, {"y": truth})


def projection(at_threshold):
    x = strided("x", (BATCH, TOKENS, WIDTH), (TOKENS * (WIDTH + 3), WIDTH + 3, 1), 3)
    return SplitProjection(x, "fg", "bg", dense("mask", BATCH, TOKENS), "order", "y", THRESHOLD, at_threshold)


def test_a_token_that_is_not_in_the_order_is_not_written():
    arrays = operands()
    arrays["order"][1, 3] = arrays["order"][1, 4]
    left_out = np.isnan(compute(attention(False), arrays, {"y": (BATCH, TOKENS, WIDTH)})["y"]).all(axis=2)
    assert np.argwhere(left_out).tolist() == [[1, operands()["order"][1, 3]]]


def test_outputs_may_have_other_dims_of_the_same_order():
    arrays = operands()
    written = compute(attention(False), arrays, {"y": (BATCH, 3, 3, WIDTH)})["y"]
    np.testing.assert_allclose(written.reshape(BATCH, TOKENS, WIDTH), attended(arrays, False), atol=1e-5)


def test_is_foreground_of_nan():
    mask = np.array([np.nan, 0.0, 1.0], np.float32)
    assert is_foreground(mask, 0.5, at_threshold=True).tolist() == [True, False, True]
    assert is_foreground(mask, 0.5, at_threshold=False).tolist() == [False, False, True]


def test_cost():
    half = {"q": (2, 9, 12), "k": (2, 5, 12), "v": (2, 5, 12), "y": (2, 9, 12)}
    tensors = extents(
        mask=((2, 9), "float32"),
        order=((2, 9), "int32"),
        share=((1,), "float32"),
        **{name: (shape, "float16") for name, shape in half.items()},
    )
    moved = 432 + 240 + 240 + 72 + 72 + 432
    assert attention(False).cost(tensors) == Cost(4 * 2 * 9 * 12 * 2, moved)
    assert attention(False, merge_scale="share").cost(tensors) == Cost(4 * 2 * 9 * 12 * 5, moved)


def test_cost_of_the_projection():
    tensors = extents(
        x=((2, 9, 15), "float16"),
        fg=((5, 12), "float16"),
        bg=((5, 12), "float16"),
        mask=((2, 9), "float32"),
        order=((2, 9), "int32"),
        y=((2, 9, 5), "float16"),
    )
    assert projection(False).cost(tensors) == Cost(2 * 2 * 9 * 12 * 5, 432 + 120 + 120 + 72 + 72 + 180)

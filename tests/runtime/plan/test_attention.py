import numpy as np
import pytest

from saishiki.runtime.plan.ops import Attention, Cost
from saishiki.runtime.plan.ops.attention import softmax
from tests.runtime.plan.running import assert_computes, dense, draw, extents, strided

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")

BATCH, HEADS, TOKENS, WIDTH = 2, 3, 7, 4


def attended(q, k, v, *, scale):
    """torch's in fp64: (B, heads, T, D) to (B, T, heads, D)."""
    q, k, v = (torch.from_numpy(np.ascontiguousarray(array)).double() for array in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).numpy()


def heads_of_tokens(buffer, tokens):
    """(B, heads, T, D) of a buffer (B, T, heads, D)."""
    row = HEADS * WIDTH
    return strided(buffer, (BATCH, HEADS, tokens, WIDTH), (tokens * row, WIDTH, row, 1))


@pytest.mark.parametrize("keys", [TOKENS, 5], ids=["self", "cross"])
def test_attention(keys):
    arrays = {
        name: draw(BATCH, count, HEADS, WIDTH, seed=seed, scale=2.0)
        for seed, (name, count) in enumerate({"q": TOKENS, "k": keys, "v": keys}.items())
    }
    truth = attended(*(array.transpose(0, 2, 1, 3) for array in arrays.values()), scale=0.3)
    op = Attention(*(heads_of_tokens(name, len(array[0])) for name, array in arrays.items()), out="y", scale=0.3)
    assert op.reads() == ("q", "k", "v")
    assert_computes(op, arrays, {"y": truth})


@pytest.mark.parametrize("dims", [(BATCH, TOKENS, HEADS * WIDTH), (BATCH, 7, 1, HEADS * WIDTH)], ids=["rows", "images"])
def test_queries_keys_and_values_of_one_packed_buffer(dims):
    """A row holds q | k | v of all heads."""
    row = 3 * HEADS * WIDTH
    packed = draw(BATCH, TOKENS, 3, HEADS, WIDTH, scale=2.0)
    truth = attended(*packed.transpose(2, 0, 3, 1, 4), scale=0.5).reshape(dims)
    parts = (
        strided("qkv", (BATCH, HEADS, TOKENS, WIDTH), (TOKENS * row, WIDTH, row, 1), i * HEADS * WIDTH)
        for i in range(3)
    )
    op = Attention(*parts, out="y", scale=0.5)
    assert op.reads() == ("qkv",)
    assert_computes(op, {"qkv": packed}, {"y": truth})


def test_values_of_another_width_than_queries():
    q, k, v = draw(1, 2, 3, 4), draw(1, 2, 5, 4, seed=1), draw(1, 2, 5, 6, seed=2)
    op = Attention(dense("q", 1, 2, 3, 4), dense("k", 1, 2, 5, 4), dense("v", 1, 2, 5, 6), "y", 0.5)
    assert_computes(op, {"q": q, "k": k, "v": v}, {"y": attended(q, k, v, scale=0.5)})


def test_softmax_of_large_scores():
    scores = np.array([[1e4, 1e4, -1e4], [-1e30, 0.0, np.log(3.0)]], np.float32)
    np.testing.assert_allclose(softmax(scores), [[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]], rtol=1e-6)


def test_cost():
    op = Attention(dense("q", 2, 3, 7, 4), dense("k", 2, 3, 5, 4), dense("v", 2, 3, 5, 4), "y", 0.5)
    shapes = {"q": (2, 3, 7, 4), "k": (2, 3, 5, 4), "v": (2, 3, 5, 4), "y": (2, 7, 3, 4)}
    tensors = extents(**{name: (shape, "float16") for name, shape in shapes.items()})
    assert op.cost(tensors) == Cost(2 * 2 * 3 * 7 * 5 * (4 + 4), 336 + 240 + 240 + 336)

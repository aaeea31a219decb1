import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

import msgspec

from saishiki.runtime.backends.launches import launches_of
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.extents import Strided
from saishiki.runtime.plan.ops import Attention
from tests.runtime.backends.launches.launched import (
    assert_launches_compute,
    assert_near,
    computed,
    launched,
)
from tests.runtime.plan.running import draw, extents, strided

BATCH, HEADS, TOKENS = 2, 3, 70
FLOOR = 2.0**-11
"""The kernel rounds the probabilities to fp16."""


def packed(width, tokens=TOKENS):
    """For every token the heads' q, k and v behind one another, as AnimeDiffusion's projection leaves them."""
    shape, row = (BATCH, HEADS, tokens, width), 3 * HEADS * width
    parts = [strided("qkv", shape, (tokens * row, width, row, 1), place * HEADS * width) for place in range(3)]
    return Attention(*parts, "out", width**-0.5)


@pytest.mark.parametrize("width", [32, 64, 80, 128, 512])
def test_attention_of_a_packed_projection(width):
    arrays = {"qkv": draw(BATCH, TOKENS, 3 * HEADS * width)}
    out = {"out": (BATCH, TOKENS, HEADS * width)}
    assert_launches_compute(packed(width), arrays, out, kernels=[f"attention_d{width}_fp16"], floor=FLOOR)


def test_attention_of_symbolic_sizes():
    """Queries at height * width tokens against as many keys as there are contexts, and a scale of its own."""
    q = Strided("q", ("batch", "2", "height*width/64", "32"), ("height*width", "32", "64", "1"), "64")
    k = Strided("k", ("batch", "2", "contexts", "32"), ("0", "32*contexts", "32", "1"))
    op = Attention(q, k, msgspec.structs.replace(k, buffer="v"), "out", 0.3)
    sizes = {"batch": 2, "height": 40, "width": 56, "contexts": 5}
    arrays = {"q": draw(2 * 35 * 64 + 64), "k": draw(2, 5, 32, seed=1), "v": draw(2, 5, 32, seed=2)}
    assert_launches_compute(op, arrays, {"out": (2, 35, 64)}, kernels=["attention_d32_fp16"], sizes=sizes, floor=FLOOR)


@pytest.mark.parametrize("wrong", ["scale", "k", "q"])
def test_another_attention_is_seen(wrong):
    op, arrays = packed(32), {"qkv": draw(BATCH, TOKENS, 288)}
    other = {"scale": op.scale * 0.9, "k": op.v, "q": msgspec.structs.replace(op.q, offset="32")}[wrong]
    wrongly = msgspec.structs.replace(op, **{wrong: other})
    got, _ = launched(wrongly, arrays, {"out": np.full((BATCH, TOKENS, 96), np.nan, "float16")})
    with pytest.raises(AssertionError, match="out"):
        assert_near(got, computed(op, arrays, got), floor=FLOOR)


def refuse(op, message, dtype="float16", width=32):
    known = extents(qkv=((BATCH, TOKENS, 9 * width), dtype), out=((BATCH, TOKENS, 3 * width), "float16"))
    with pytest.raises(BackendError, match=message):
        launches_of(op, known, lambda name: 0, sms=1)


def test_attention_refuses_what_no_kernel_takes():
    refuse(packed(48), "no kernel attends with heads of 48: expected 32, 64, 80, 128, 512")
    refuse(packed(32), "no kernel of Attention takes qkv in float32: expected float16", dtype="float32")
    op = packed(32)
    refuse(msgspec.structs.replace(op, q=msgspec.structs.replace(op.q, strides=("0", "4", "288", "1"))), "at strides")
    refuse(msgspec.structs.replace(op, v=msgspec.structs.replace(op.v, strides=("0", "8", "8", "2"))), "side by side")

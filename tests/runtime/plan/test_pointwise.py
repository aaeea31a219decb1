from typing import get_args

import numpy as np
import pytest

from saishiki.runtime.plan.ops import Cost, Function, Pointwise
from saishiki.runtime.plan.ops.pointwise import gelu
from tests.runtime.plan.running import assert_computes, compute, dense, draw, extents, strided

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
F = torch.nn.functional

BATCH, TOKENS, CHANNELS = 2, 5, 7
SHAPE = BATCH, TOKENS, CHANNELS
FUNCTIONS = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gated_gelu": lambda x, gate: x * F.gelu(gate),
    "sin": torch.sin,
    "cos": torch.cos,
    "clip": lambda x, low, high: torch.minimum(torch.maximum(x, low), high),
    "select_above": lambda x, threshold, above, other: torch.where(x > threshold, above, other),
    "modulate": lambda x, scale, shift: x * (1 + scale) + shift,
}
COUNTS = {"silu": 1, "sigmoid": 1, "gelu": 1, "sin": 1, "cos": 1, "clip": 3, "modulate": 3, "select_above": 4}
# Shapes of operands, and the strides by which they have the shape of the result.
WAYS = {
    "whole": (SHAPE, (TOKENS * CHANNELS, CHANNELS, 1)),
    "by_picture": ((BATCH, CHANNELS), (CHANNELS, 0, 1)),
    "by_token": ((BATCH, TOKENS), (TOKENS, 1, 0)),
    "vector": ((CHANNELS,), (0, 0, 1)),
    "number": ((1,), (0, 0, 0)),
}


def operand(position, way):
    """Odd ones are about 1.5, away from 0, so that they may divide."""
    shape, strides = WAYS[way]
    name = "abcd"[position]
    mean, scale = ((0.0, 2.0), (1.5, 0.25))[position % 2]
    values = draw(*shape, seed=position, mean=mean, scale=scale)
    return name, values, strided(name, SHAPE, strides)


def expanded(values, part):
    """An operand in fp64 as torch expands it."""
    strides = [int(stride) for stride in part.strides]
    return torch.as_strided(torch.from_numpy(values).double(), SHAPE, strides)


def test_every_function_is_tested():
    assert set(FUNCTIONS) == set(get_args(Function))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_function(function, way):
    """The first operand is whole, the others are expanded."""
    drawn = [operand(i, way if i else "whole") for i in range(COUNTS.get(function, 2))]
    truth = FUNCTIONS[function](*(expanded(values, part) for _, values, part in drawn))
    op = Pointwise(function=function, inputs=tuple(part for *_, part in drawn), out=dense("y", *SHAPE))
    assert op.reads() == tuple(name for name, *_ in drawn)
    assert_computes(op, {name: values for name, values, _ in drawn}, {"y": truth.expand(SHAPE)})


def test_numbers_are_expanded_on_either_side():
    a, b = draw(1), draw(*SHAPE, seed=1)
    op = Pointwise("sub", (strided("a", SHAPE, (0, 0, 0)), dense("b", *SHAPE)), dense("y", *SHAPE))
    assert_computes(op, {"a": a, "b": b}, {"y": a.astype(np.float64) - b})


def test_a_gate_of_the_same_buffer():
    """GEGLU: a row is x | gate."""
    rows = draw(TOKENS, 2 * CHANNELS)
    halves = [strided("a", (TOKENS, CHANNELS), (2 * CHANNELS, 1), i * CHANNELS) for i in range(2)]
    x, gate = torch.from_numpy(rows).double().chunk(2, dim=1)
    op = Pointwise("gated_gelu", tuple(halves), dense("y", TOKENS, CHANNELS))
    assert op.reads() == ("a",)
    assert_computes(op, {"a": rows}, {"y": x * F.gelu(gate)})


def test_into_a_part_of_a_buffer():
    a = draw(TOKENS, CHANNELS)
    truth = np.full((TOKENS, 10), np.nan)
    truth[:, 3:] = np.cos(a.astype(np.float64))
    out = strided("y", (TOKENS, CHANNELS), (10, 1), 3)
    assert_computes(Pointwise("cos", (dense("a", TOKENS, CHANNELS),), out), {"a": a}, {"y": truth})


@pytest.mark.parametrize(
    ("function", "expected"), [("silu", [0.0, 0.0, 1e4]), ("sigmoid", [0.0, 0.5, 1.0]), ("gelu", [0.0, 0.0, 1e4])]
)
def test_functions_far_from_zero(function, expected):
    """exp(1e4) would overflow."""
    op = Pointwise(function, (dense("a", 3),), dense("y", 3))
    with np.errstate(all="raise", under="ignore"):
        y = compute(op, {"a": np.array([-1e4, 0.0, 1e4], np.float32)}, {"y": (3,)})["y"]
    assert y.tolist() == expected


def test_select_above_leaves_equality_to_the_other():
    """Also for a threshold that fp16 has not: both operands are fp32."""
    at = np.float32(0.05)
    near = np.array([np.nextafter(at, -1), at, np.nextafter(at, 1), np.nan], np.float32)
    numbers = {"threshold": at, "above": np.float32(1), "other": np.float32(-1)}
    arrays = {"a": near} | {name: np.array([value]) for name, value in numbers.items()}
    inputs = (dense("a", 4), *(strided(name, (4,), (0,)) for name in numbers))
    y = compute(Pointwise("select_above", inputs, dense("y", 4)), arrays, {"y": (4,)}, dtype="float16")["y"]
    assert y.tolist() == [-1, -1, 1, -1]


def test_gelu_takes_the_error_function_and_not_its_approximation():
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    truth, tanh = (F.gelu(torch.from_numpy(x).double(), approximate=way).numpy() for way in ("none", "tanh"))
    assert gelu(x).dtype == np.float32
    assert np.abs(gelu(x) - truth).max() < 1e-6 < 1e-4 < np.abs(tanh - truth).max()


def test_cost_counts_what_is_repeated_once():
    op = Pointwise(
        "modulate",
        (dense("a", *SHAPE), strided("b", SHAPE, (CHANNELS, 0, 1)), strided("c", SHAPE, (0, 0, 0))),
        dense("y", *SHAPE),
    )
    tensors = extents(a=(SHAPE, "float16"), b=((2, 7), "float32"), c=((1,), "float16"), y=(SHAPE, "float16"))
    assert op.cost(tensors) == Cost(0, 140 + 56 + 2 + 140)

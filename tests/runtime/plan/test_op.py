"""What holds for every operation of the vocabulary."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

import msgspec
import numpy as np
import pytest

from saishiki.runtime.plan.extents import Strided, Tensors
from saishiki.runtime.plan.ops import (
    AnyOp,
    Attention,
    Convolution,
    Copy,
    InputNorm,
    LayerNorm,
    MaskedSplitCrossAttention,
    Matmul,
    Mean,
    NormApply,
    NormInput,
    NormStatistics,
    OpBackend,
    Pointwise,
    Pool,
    RegionOrder,
    SplitProjection,
)
from saishiki.runtime.plan.ops.op import sigmoid, silu
from saishiki.runtime.signature import Array
from tests.runtime.plan.running import dense, draw, extents

IMAGES = (2, 4, 6, 8)
TOKENS = (2, 24, 8)
MASK = (2, 24)
NORM = {"x": (2, 2, 3, 8), "c": IMAGES, "r": (2, 4, 6, 16), "w": (16,), "b": (16,)}
NORM_INPUT = NormInput("x", concat="c", upsample=True, residual="r")
SPLIT = {"q": TOKENS, "k": (2, 6, 8), "v": (2, 6, 8), "mask": MASK, "q2": TOKENS, "share": (1,), "order": MASK}

# Each with every operand it may have, and the shapes of all that it touches.
CASES: list[tuple[AnyOp, dict[str, tuple[int, ...]]]] = [
    (
        Attention(dense("q", 2, 2, 5, 4), dense("k", 2, 2, 3, 4), dense("v", 2, 2, 3, 4), "y", 0.5),
        {"q": (2, 2, 5, 4), "k": (2, 2, 3, 4), "v": (2, 2, 3, 4), "y": (2, 5, 2, 4)},
    ),
    (
        Convolution(("x",), "w", "b", "y", padding=(1, 1, 1, 1), residual="r", bias_offset=8),
        {"x": IMAGES, "w": (8, 3, 3, 8), "b": (2, 24), "r": IMAGES, "y": IMAGES},
    ),
    (
        Convolution(("x", "z"), "w", "b", "y", stride=2, from_images=True, to_image=True),
        {"x": (2, 3, 4, 6), "z": (2, 4, 4, 6), "w": (8, 2, 2, 16), "b": (8,), "y": (2, 3, 2, 3)},
    ),
    (
        Convolution(("x",), "w", "b", "y", padding=(1, 1, 1, 1), norm=InputNorm("s", "nw", "nb", True)),
        {"x": IMAGES, "w": (8, 3, 3, 8), "b": (8,), "s": (2, 4, 2), "nw": (8,), "nb": (8,), "y": IMAGES},
    ),
    (Copy((dense("x", 2, 3), dense("z", 2, 2)), 1, dense("y", 2, 8)), {"x": (2, 3), "z": (2, 2), "y": (2, 8)}),
    (LayerNorm(dense("x", 6, 8), "y", 1e-5, "w", "b"), {"x": (6, 8), "w": (8,), "b": (8,), "y": (2, 3, 8)}),
    (
        MaskedSplitCrossAttention(
            **{name: dense(name, *SPLIT[name]) for name in ("q", "k", "v", "mask")},
            order="order",
            out="y",
            heads=2,
            foreground_tokens="2",
            threshold=0.5,
            foreground_at_threshold=True,
            foreground_scale=0.5,
            background_scale=2.0,
            background_q=dense("q2", *TOKENS),
            merge_scale="share",
        ),
        {**SPLIT, "y": TOKENS},
    ),
    (
        Matmul(dense("x", 6, 8), "w", dense("y", 6, 5), "b", dense("r", 6, 5)),
        {"x": (6, 8), "w": (5, 8), "b": (5,), "r": (6, 5), "y": (6, 5)},
    ),
    (Mean("x", "y"), {"x": IMAGES, "y": (2, 8)}),
    (
        NormApply(NORM_INPUT, "s", "w", "b", "y", True, "u"),
        {**NORM, "s": (2, 4, 2), "y": (2, 4, 6, 16), "u": (2, 4, 6, 16)},
    ),
    (NormStatistics(NORM_INPUT, "s", 4, 1e-5), {"x": NORM["x"], "c": NORM["c"], "r": NORM["r"], "s": (2, 4, 2)}),
    (Pointwise("add", (dense("x", 6, 8), dense("z", 6, 8)), dense("y", 6, 8)), dict.fromkeys("xzy", (6, 8))),
    (Pool("x", "y"), {"x": IMAGES, "y": (2, 2, 3, 8)}),
    (RegionOrder(dense("mask", *MASK), "y", 0.5, False), {"mask": MASK, "y": MASK}),
    (
        SplitProjection(dense("x", *TOKENS), "fg", "bg", dense("mask", *MASK), "order", "y", 0.5, False),
        {"x": TOKENS, "fg": (5, 8), "bg": (5, 8), "mask": MASK, "order": MASK, "y": (2, 24, 5)},
    ),
]

each_case = pytest.mark.parametrize(("op", "shapes"), CASES, ids=lambda case: getattr(type(case), "__name__", ""))


@dataclass(frozen=True)
class Recording(Mapping[str, Array]):
    """Arrays, and the names of those that were asked for."""

    arrays: dict[str, Array]
    asked: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> Array:
        self.asked.add(name)
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def arrays_of(op, shapes):
    """What it reads drawn at random, but for an order of tokens; what it writes full of NaN."""
    drawn = {name: draw(*shape, seed=seed, dtype="float32") for seed, (name, shape) in enumerate(shapes.items())}
    if "order" in shapes:
        drawn["order"] = np.argsort(drawn["order"], axis=1).astype(np.int32)
    return drawn | {name: np.full(shapes[name], np.nan, np.float32) for name in op.writes()}


def test_every_operation_has_a_case():
    assert {type(op) for op, _ in CASES} == set(get_args(AnyOp))


@each_case
def test_what_is_touched_is_what_is_said(op, shapes):
    recording = Recording(arrays_of(op, shapes))
    op.compute(Tensors({}, recording))
    assert recording.asked == {*op.reads(), *op.writes()} == shapes.keys()
    assert not set(op.reads()) & set(op.writes())


@each_case
def test_all_of_the_results_is_written_and_nothing_else(op, shapes):
    arrays = arrays_of(op, shapes)
    before = {name: arrays[name].copy() for name in op.reads()}
    op.compute(Tensors({}, arrays))
    for name in op.writes():
        assert np.isfinite(arrays[name]).all(), name
    for name, array in before.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@each_case
def test_every_operand_counts(op, shapes):
    """Other numbers in any of them give another result, or an order that leaves tokens out."""
    arrays = arrays_of(op, shapes)
    op.compute(Tensors({}, arrays))
    for name in op.reads():
        other = arrays_of(op, shapes)
        other[name] = np.zeros_like(other[name]) if name == "order" else -other[name][..., ::-1] - 1
        op.compute(Tensors({}, other))
        assert any((other[out] != arrays[out]).any() for out in op.writes()), name


@each_case
def test_json_round_trip(op, shapes):
    text = msgspec.json.encode(op)
    assert msgspec.json.decode(text, type=AnyOp) == op
    assert msgspec.json.decode(text)["op"] == op.__struct_config__.tag


def test_tags_are_distinct():
    tags = [kind.__struct_config__.tag for kind in get_args(AnyOp)]
    assert len(set(tags)) == len(tags) == 13


@pytest.mark.parametrize("kind", get_args(AnyOp), ids=lambda kind: kind.__name__)
def test_backends(kind):
    assert kind.backends
    assert set(kind.backends) <= set(get_args(OpBackend))
    assert "triton" in kind.backends  # which alone runs a plan where cuDNN is not installed
    assert len(set(kind.backends)) == len(kind.backends)


@each_case
def test_cost_is_of_whole_numbers(op, shapes):
    cost = op.cost(extents(**{name: (shape, "float16") for name, shape in shapes.items()}))
    assert isinstance(cost.flops, int)
    assert isinstance(cost.bytes, int)
    largest = max(int(np.prod(shape)) for shape in shapes.values())
    assert 2 * largest <= cost.bytes <= 2 * sum(int(np.prod(shape)) for shape in shapes.values())
    assert (cost.flops > 0) == ("cudnn" in op.backends or "Split" in type(op).__name__)


def test_unknown_operation():
    with pytest.raises(msgspec.ValidationError, match="Invalid value 'warp'"):
        msgspec.json.decode(b'{"op": "warp"}', type=AnyOp)


def test_misspelt_operand():
    with pytest.raises(msgspec.ValidationError, match="unknown field `outt`"):
        msgspec.json.decode(b'{"op": "pool", "x": "a", "outt": "b"}', type=AnyOp)


def test_strides_and_shape_of_other_lengths():
    with pytest.raises(ValueError, match=r"a: expected a stride for each of \('2', '3'\), got \('1',\)"):
        Strided("a", ("2", "3"), ("1",))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sigmoid_and_silu(dtype):
    x = np.array([-1e4, -1.0, 0.0, 2.0, 1e4], dtype)
    exact = [0.0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2)), 1.0]
    with np.errstate(all="raise", under="ignore"):
        results = sigmoid(x), silu(x)
    assert {result.dtype for result in results} == {np.dtype(dtype)}
    rounding = 4 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(results[0], exact, rtol=rounding, atol=rounding)
    np.testing.assert_allclose(results[1], x.astype(np.float64) * exact, rtol=rounding, atol=rounding)

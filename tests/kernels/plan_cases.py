"""Operations of a plan that the small kernels run, with operands of which every kernel takes several blocks."""

from collections.abc import Mapping
from dataclasses import dataclass

from saishiki.runtime.plan.ops import AnyOp, Attention, Copy, LayerNorm, Mean, Pointwise, Pool
from saishiki.runtime.signature import Array
from tests.runtime.plan.running import dense, draw, strided


@dataclass(frozen=True)
class PlanCase:
    """An operation that writes ``out`` of a shape, and its operands."""

    op: AnyOp
    arrays: Mapping[str, Array]
    shape: tuple[int, ...]


def _attention(heads: int, width: int) -> PlanCase:
    """Of a packed projection, as AnimeDiffusion has it."""
    channels = heads * width
    strides = (150 * 3 * channels, width, 3 * channels, 1)
    q, k, v = (strided("qkv", (2, heads, 150, width), strides, channels * place) for place in range(3))
    op = Attention(q, k, v, "out", width**-0.5)
    return PlanCase(op, {"qkv": draw(2, 150, 3 * channels)}, (2, 150, channels))


def _layer_norm() -> PlanCase:
    vectors = {"w": draw(320, seed=1, dtype="float32"), "b": draw(320, seed=2, dtype="float32")}
    op = LayerNorm(strided("x", (50, 320), (640, 1), 320), "out", 1e-5, "w", "b")
    return PlanCase(op, {"x": draw(50, 640, mean=20.0), **vectors}, (50, 320))


def _modulate() -> PlanCase:
    """fp16 by vectors in fp32, eight numbers at a time."""
    shape = (2, 3, 9, 7, 32)
    scale, shift = (strided("v", shape, (0, 64, 0, 0, 1), offset) for offset in (0, 32))
    op = Pointwise("modulate", (dense("x", *shape), scale, shift), dense("out", *shape))
    return PlanCase(op, {"x": draw(*shape), "v": draw(3, 64, seed=1, dtype="float32")}, shape)


def _select_above() -> PlanCase:
    """By a number for each token, and with a threshold for all."""
    shape = (3, 70, 40)
    mask, threshold = strided("m", shape, (70, 1, 0)), strided("t", shape, (0, 0, 0))
    op = Pointwise("select_above", (mask, threshold, dense("a", *shape), dense("b", *shape)), dense("out", *shape))
    arrays = {"m": draw(3, 70, dtype="float32"), "t": draw(1, seed=1)}
    return PlanCase(op, arrays | {"a": draw(*shape, seed=2), "b": draw(*shape, seed=3)}, shape)


def _two(function: str, width: int) -> PlanCase:
    shape = (3, 70, width)
    op = Pointwise(function, (dense("a", *shape), dense("b", *shape)), dense("out", *shape))  # type: ignore[arg-type]
    return PlanCase(op, {"a": draw(*shape), "b": draw(*shape, seed=1)}, shape)


def _copy() -> PlanCase:
    """fp32 images into fp16 pictures, and zeros where these have more channels."""
    images = strided("x", (2, 5, 30, 20), (3000, 600, 20, 1))
    out = strided("out", (2, 8, 30, 20), (4800, 1, 160, 8))
    return PlanCase(Copy((images,), 1, out), {"x": draw(2, 5, 30, 20, dtype="float32")}, (2, 30, 20, 8))


PLAN_CASES: Mapping[str, PlanCase] = {
    "attention": _attention(3, 64),
    "attention_wide": _attention(1, 512),
    "average_pool": PlanCase(Pool("x", "out"), {"x": draw(2, 14, 22, 40)}, (2, 7, 11, 40)),
    "layer_norm": _layer_norm(),
    "mean": PlanCase(Mean("x", "out"), {"x": draw(2, 9, 11, 72, mean=5.0)}, (2, 72)),
    "pointwise": _two("gated_gelu", 40),
    "pointwise_one_by_one": _two("div", 41),
    "pointwise_modulate": _modulate(),
    "pointwise_select_above": _select_above(),
    "pointwise_copy": _copy(),
}

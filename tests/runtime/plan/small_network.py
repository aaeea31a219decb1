"""A plan made by hand, with every kind of fold, and what it computes in torch, written on its own.

Images go through a convolution that takes the step's vector, a norm, a convolution with a residual, one of stride 2;
then tokens attend to their own region, are projected by a weight per region, and go through a linear layer with a
residual; upsampled and beside what was before, they are normalised and become an image again.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from saishiki.runtime.plan import Buffer, HoistedVector, Plan, WeightSpec
from saishiki.runtime.plan.extents import Strided
from saishiki.runtime.plan.ops import (
    Convolution,
    MaskedSplitCrossAttention,
    Matmul,
    NormApply,
    NormInput,
    NormStatistics,
    RegionOrder,
    SplitProjection,
)
from saishiki.runtime.signature import Array, Signature, TensorSpec
from tests.runtime.plan.running import draw

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
F = torch.nn.functional

HEADS, KEYS, FOREGROUND, THRESHOLD = 2, 6, 2, 0.5
GROUPS, EPSILON = 2, 1e-5
IMAGE = ("batch", "3", "height", "width")
HALVES = "height*width/4"
SIGNATURE = Signature(
    inputs=(
        TensorSpec("image", "float32", IMAGE),
        TensorSpec("time", "float32", ("batch", "20")),
        TensorSpec("keys", "float32", ("batch", str(KEYS), "8")),
        TensorSpec("values", "float32", ("batch", str(KEYS), "8")),
        TensorSpec("mask", "float32", ("batch", HALVES)),
    ),
    outputs=(TensorSpec("result", "float32", IMAGE),),
    multiples={"height": 2, "width": 2},
)
WEIGHTS = {
    "first": (8, 3, 3, 16),
    "steps": (20,),
    "second": (8, 3, 3, 8),
    "down": (8, 3, 3, 8),
    "last": (8, 3, 3, 16),
    "foreground": (8, 8),
    "background": (8, 8),
    "linear": (8, 8),
    **{f"{name}.bias": (8,) for name in ("second", "down", "linear", "last")},
    **{f"{name}.{part}": (8,) for name in ("norm",) for part in ("weight", "offset")},
    **{f"out_norm.{part}": (16,) for part in ("weight", "offset")},
}
FP32 = ("steps", "norm.weight", "norm.offset", "out_norm.weight", "out_norm.offset")
FULL, HALF = ("batch", "height", "width", "8"), ("batch", "height/2", "width/2", "8")
OUT_NORM = NormInput("linear_out", concat="residual_out", upsample=True)


def tokens(buffer: str, count: str = HALVES) -> Strided:
    """(B, T, 8) of a buffer in that order."""
    row = "8" if count == "1" else f"8*{count}"
    return Strided(buffer, ("batch", count, "8"), (row, "8", "1"))


def rows(buffer: str) -> Strided:
    """(B * T, 8) of a buffer in that order."""
    return Strided(buffer, (f"batch*{HALVES}", "8"), ("8", "1"))


def plan(dtype: str) -> Plan:
    """The plan in a dtype."""
    mask = Strided("mask", ("batch", HALVES), (HALVES, "1"))
    images = ("first_out", "norm_out", "residual_out")
    halves = ("down_out", "attended", "projected", "linear_out")
    return Plan(
        version=1,
        dtype=dtype,
        buffers={
            **{name: Buffer(dtype, FULL) for name in images},
            **{name: Buffer(dtype, HALF) for name in halves},
            "normal": Buffer(dtype, (*FULL[:3], "16")),
            "order": Buffer("int32", ("batch", HALVES)),
            "statistics": Buffer("float32", ("batch", str(GROUPS), "2")),
            "out_statistics": Buffer("float32", ("batch", str(GROUPS), "2")),
        },
        hoisted={"time.hoisted": HoistedVector("time", "steps")},
        weights={name: WeightSpec("float32" if name in FP32 else dtype, shape) for name, shape in WEIGHTS.items()},
        ops=(
            Convolution(
                ("image",), "first", "time.hoisted", "first_out", 1, (1, 1, 1, 1), bias_offset=12, from_images=True
            ),
            NormStatistics(NormInput("first_out"), "statistics", GROUPS, EPSILON),
            NormApply(NormInput("first_out"), "statistics", "norm.weight", "norm.offset", "norm_out", True),
            Convolution(("norm_out",), "second", "second.bias", "residual_out", 1, (1, 1, 1, 1), "first_out"),
            Convolution(("residual_out",), "down", "down.bias", "down_out", 2, (0, 0, 1, 1)),
            RegionOrder(mask, "order", THRESHOLD, False),
            MaskedSplitCrossAttention(
                q=tokens("down_out"),
                k=tokens("keys", str(KEYS)),
                v=tokens("values", str(KEYS)),
                mask=mask,
                order="order",
                out="attended",
                heads=HEADS,
                foreground_tokens=str(FOREGROUND),
                threshold=THRESHOLD,
                foreground_at_threshold=False,
            ),
            SplitProjection(
                tokens("attended"), "foreground", "background", mask, "order", "projected", THRESHOLD, False
            ),
            Matmul(rows("projected"), "linear", rows("linear_out"), "linear.bias", rows("down_out")),
            NormStatistics(OUT_NORM, "out_statistics", GROUPS, EPSILON),
            NormApply(OUT_NORM, "out_statistics", "out_norm.weight", "out_norm.offset", "normal", True),
            Convolution(("normal",), "last", "last.bias", "result", 1, (1, 1, 1, 1), to_image=True),
        ),
    )


def weights(dtype: str) -> dict[str, Array]:
    """Random ones that hold activations near 1."""
    drawn = {}
    for seed, (name, shape) in enumerate(WEIGHTS.items()):
        scale = 0.5 if len(shape) == 1 else 1.5 / np.sqrt(np.prod(shape[1:]))
        values = draw(*shape, seed=100 + seed, scale=scale, mean=name.endswith(".weight"))
        drawn[name] = values.astype("float32" if name in FP32 else dtype)
    drawn["first"][..., 3:] = 0
    return drawn


def inputs(batch: int = 2, height: int = 6, width: int = 10) -> dict[str, Array]:
    """Random ones of fp16 numbers; a third of the mask is exactly the threshold."""
    count = height * width // 4
    drawn = {
        "image": draw(batch, 3, height, width, seed=1),
        "time": draw(batch, 20, seed=2),
        "keys": draw(batch, KEYS, 8, seed=3),
        "values": draw(batch, KEYS, 8, seed=4, scale=2.0),
        "mask": np.random.default_rng(5).choice([0.0, THRESHOLD, 1.0], (batch, count)),
    }
    return {name: array.astype(np.float32) for name, array in drawn.items()}


def truth(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> Array:
    """The result in torch's fp64, with images as (B, C, H, W)."""
    w = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    given = {name: torch.from_numpy(array).double() for name, array in inputs.items()}
    is_foreground = given["mask"] > THRESHOLD
    x = _convolved(given["image"], w["first"][..., :3]) + (given["time"] + w["steps"])[:, 12:, None, None]
    x = x + _convolved(_normalised(x, w, "norm"), w["second"]) + w["second.bias"][:, None, None]
    half = _convolved(F.pad(x, (0, 1, 0, 1)), w["down"], stride=2, padding=0) + w["down.bias"][:, None, None]
    q = half.flatten(2).transpose(1, 2)
    parts = slice(None, FOREGROUND), slice(FOREGROUND, None)
    projected = [
        _attended(q, given["keys"][:, part], given["values"][:, part]) @ w[name].T
        for part, name in zip(parts, ("foreground", "background"), strict=True)
    ]
    y = torch.where(is_foreground[..., None], *projected) @ w["linear"].T + w["linear.bias"] + q
    y = F.interpolate(y.transpose(1, 2).reshape(half.shape), scale_factor=2, mode="nearest")
    y = _convolved(_normalised(torch.cat([y, x], dim=1), w, "out_norm"), w["last"]) + w["last.bias"][:, None, None]
    result: Array = y[:, :3].numpy()
    return result


def _convolved(x: Any, weight: Any, *, stride: int = 1, padding: int = 1) -> Any:
    return F.conv2d(x, weight.permute(0, 3, 1, 2), stride=stride, padding=padding)


def _normalised(x: Any, w: Mapping[str, Any], name: str) -> Any:
    return F.silu(F.group_norm(x, GROUPS, w[f"{name}.weight"], w[f"{name}.offset"], EPSILON))


def _attended(q: Any, k: Any, v: Any) -> Any:
    q, k, v = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

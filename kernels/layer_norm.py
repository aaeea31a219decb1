"""LayerNorm of rows: ``y = (x - mean) / sqrt(variance + eps) * weight + bias``, over the numbers of each row.

Layout: x (rows, C), its rows contiguous and any distance apart, y (rows, C) dense; fp16, bf16 or fp32, everything
computed in fp32. A program has BLOCK_R whole rows in registers. The mean is summed twice, the second time as what is
left of it, and the deviations are squared after it is taken off, so that a mean much larger than the deviation does no
harm. A launch without torch: :func:`saishiki.runtime.backends.launches.layer_norm.layer_norm_launches`.

Source: Ba, Kiros and Hinton, "Layer Normalization", arXiv 1607.06450.
"""

# ruff: noqa: N803

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from saishiki.kernels.checks import FLOATS, INTERPRETED, check_runs_here, check_tensor
from saishiki.kernels.rounding import rounded
from saishiki.kernels.variant import Variant
from saishiki.runtime.backends.launches.layer_norm import BLOCKS, UNIT, block_of

BLOCK_NUMBERS = 2048
"""Of a program's rows together, as they are padded; one row may be longer."""


def layer_norm_reference(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """Of :func:`layer_norm`, the same arguments and result, in any dtype."""
    weight, bias = (None if vector is None else vector.to(x.dtype) for vector in (weight, bias))
    return F.layer_norm(x, x.shape[1:], weight, bias, eps)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["rows", "channel_units", "row_units", "has_weight", "has_bias"]
)
def _layer_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    channel_units,
    row_units,
    has_weight,
    has_bias,
    eps,
    UNIT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    c = tl.arange(0, BLOCK_C)  # [BLOCK_C]
    channels = channel_units * UNIT
    known = c < channels
    inside = (row < rows)[:, None] & known[None, :]
    first = row.to(tl.int64)[:, None]
    x = tl.load(x_ptr + (first * row_units * UNIT + c[None, :]), mask=inside, other=0.0).to(tl.float32)
    away = tl.where(inside, x - (tl.sum(x, 1) / channels)[:, None], 0.0)
    away = tl.where(inside, away - (tl.sum(away, 1) / channels)[:, None], 0.0)
    variance = tl.sum(away * away, 1) / channels  # [BLOCK_R]
    y = away * tl.div_rn(1.0, tl.sqrt_rn(variance + eps))[:, None]
    if has_weight:
        y *= tl.load(weight_ptr + c, mask=known, other=0.0)[None, :]
    if has_bias:
        y += tl.load(bias_ptr + c, mask=known, other=0.0)[None, :]
    y = rounded(y, out_ptr.dtype.element_ty, IN_FP32)
    tl.store(out_ptr + (first * channels + c[None, :]), y, mask=inside)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """(rows, C) in x's dtype, dense.

    Args:
        x: (rows, C) fp16, bf16 or fp32, numbers of a row next to each other; C from 1 to 4096.
        weight: (C,) fp32; where None, ones.
        bias: (C,) fp32; where None, zeros.

    Raises ``TypeError`` for other dtypes, ``ValueError`` for shapes, strides and numbers that do not fit.
    """
    if x.dtype not in FLOATS:
        raise TypeError(f"expected x in {' or '.join(map(str, FLOATS))}, got {x.dtype}")
    if x.ndim != 2 or not 1 <= x.shape[1] <= BLOCKS[-1]:
        raise ValueError(f"expected x (rows, C) with C from 1 to {BLOCKS[-1]}, got {tuple(x.shape)}")
    if x.shape[1] > 1 and x.stride(1) != 1:
        raise ValueError(f"expected the numbers of a row next to each other, got strides {x.stride()}")
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"expected a finite eps above 0, got {eps}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_tensor(name, vector, x.shape[1:], (torch.float32,), x.device)
    check_runs_here("layer_norm", x)
    rows, channels = x.shape
    out = torch.empty((rows, channels), dtype=x.dtype, device=x.device)
    if rows:
        unit = math.gcd(UNIT, channels, x.stride(0))
        blocks = _blocks(block_of(channels))
        _layer_norm_kernel[(triton.cdiv(rows, blocks["BLOCK_R"]),)](
            x,
            # Not None: a compiler takes the branch that is never run, too.
            x if weight is None else weight,
            x if bias is None else bias,
            out,
            rows,
            channels // unit,
            x.stride(0) // unit,
            int(weight is not None),
            int(bias is not None),
            eps,
            UNIT=unit,
            IN_FP32=INTERPRETED and x.dtype == torch.bfloat16,
            **blocks,
        )
    return out


def _blocks(block: int) -> dict[str, int]:
    return {"BLOCK_R": max(1, BLOCK_NUMBERS // block), "BLOCK_C": block}


def _variant(block: int) -> Variant:
    signature = {
        "x_ptr": "*fp16",
        **dict.fromkeys(("weight_ptr", "bias_ptr"), "*fp32"),
        "out_ptr": "*fp16",
        **dict.fromkeys(("rows", "channel_units", "row_units", "has_weight", "has_bias"), "i32"),
        "eps": "fp32",
    }
    blocks = _blocks(block)
    return Variant(
        name=f"layer_norm_{block}_fp16",
        kernel=_layer_norm_kernel,
        signature=signature,
        constexprs={"UNIT": UNIT, **blocks, "IN_FP32": False},
        aligned=("x_ptr", "weight_ptr", "bias_ptr", "out_ptr"),
        grid=((("rows",), blocks["BLOCK_R"]),),
        max_registers=80,
    )


VARIANTS: tuple[Variant, ...] = tuple(map(_variant, BLOCKS))

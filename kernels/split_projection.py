"""A linear layer with weights of its own for foreground and for background tokens, in one launch.

``out = x w_fg^T`` on foreground tokens, ``x w_bg^T`` on background ones: the packed queries that
:func:`~saishiki.kernels.masked_split_cross_attention` takes where LoRAs give each region its own projection.

Layout: x (B, T, K), weights (N, K) as ``torch.nn.Linear`` has them, out (B, T, N), contiguous; fp16, bf16 or fp32,
summed in fp32. Fused are both products and the choice. A tile of tokens that lies in one region reads that region's
weight alone; in a tile of both, a row is 0 in the product with the other region's weight, and one accumulator takes
both. Rows of x may be parts of longer ones in a launch without torch:
:func:`saishiki.runtime.backends.launches.regions.split_projection_launches`.

Source: the split cross-attention of ColorizeDiffusion v1.5 and v2 (tellurion-kanata/ColorizeDiffusion), observed from
outside.
"""

# ruff: noqa: N803

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from saishiki.kernels.checks import FLOATS, INTERPRETED, check_tensor
from saishiki.kernels.dot import dot
from saishiki.kernels.foreground import is_foreground
from saishiki.kernels.masked_split_cross_attention import reference
from saishiki.kernels.masked_split_cross_attention.semantics import SELECTIONS, Selection
from saishiki.kernels.registration import register_op
from saishiki.kernels.rounding import rounded
from saishiki.kernels.variant import Variant
from saishiki.runtime.backends.launches.regions import UNIT

TILES = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
TILES_FP32 = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}


def split_projection_reference(
    x: Tensor,
    w_fg: Tensor,
    w_bg: Tensor,
    mask: Tensor,
    *,
    selection: Selection,
    threshold: float = 0.05,
    order: Tensor | None = None,
) -> Tensor:
    """Of :func:`split_projection`, the same arguments and result, in any dtype; ``order`` changes nothing."""
    chosen = reference.is_foreground(mask, selection=selection, threshold=threshold)[..., None]
    return torch.where(chosen, x @ w_fg.T, x @ w_bg.T)


@triton.jit  # type: ignore[untyped-decorator]
def _accumulate(  # type: ignore[no-untyped-def]
    acc,  # [BLOCK_M, BLOCK_N]
    x_ptr,
    w_ptr,
    x_rows,  # [BLOCK_M], where each begins
    own,  # [BLOCK_M]
    columns,  # [BLOCK_N]
    column_inside,  # [BLOCK_N]
    width,
    last,
    BLOCK_K: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    """acc + x w^T in its own rows; last is width, or 0 where the tile has none."""
    for start in range(0, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        k_inside = k < width
        x = tl.load(x_ptr + x_rows[:, None] + k[None, :], mask=own[:, None] & k_inside[None, :], other=0.0)
        w = tl.load(
            w_ptr + columns[:, None] * width + k[None, :], mask=column_inside[:, None] & k_inside[None, :], other=0.0
        )
        acc = dot(x, tl.trans(w), acc, IN_FP32)
    return acc


# width and out_width are specialised: whether rows start at multiples of 16 bytes decides how they are read.
@triton.jit(do_not_specialize=["selection", "rows", "tokens", "x_batch_units", "x_token_units"])  # type: ignore[untyped-decorator]
def _split_projection_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    w_fg_ptr,
    w_bg_ptr,
    mask_ptr,
    order_ptr,
    out_ptr,
    selection,
    threshold,
    rows,
    tokens,
    width,
    out_width,
    x_batch_units,
    x_token_units,
    HAS_ORDER: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    # Blocks that run together share rows of x and of the weights: GROUP row tiles by all column tiles at a time.
    row_tiles = tl.num_programs(0)
    block = tl.program_id(1).to(tl.int64) * row_tiles + tl.program_id(0)
    group_blocks = GROUP * tl.num_programs(1)
    first_row_tile = block // group_blocks * GROUP
    group_rows = tl.minimum(row_tiles - first_row_tile, GROUP)
    row_tile = first_row_tile + block % group_blocks % group_rows
    column_tile = block % group_blocks // group_rows

    places = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    inside = places < rows
    b = places // tokens  # [BLOCK_M]
    token = places - b * tokens
    if HAS_ORDER:
        token = tl.load(order_ptr + places, mask=inside, other=0)
    at = b * tokens + token
    x_rows = (b * x_batch_units + token * x_token_units) * UNIT
    column_inside = columns < out_width
    share = tl.load(mask_ptr + at, mask=inside, other=0.0)  # [BLOCK_M]
    is_fg = is_foreground(share, threshold, selection)
    fg = inside & is_fg
    bg = inside & (is_fg == 0)

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    last = tl.where(tl.max(fg.to(tl.int32), 0) > 0, width, 0)
    acc = _accumulate(acc, x_ptr, w_fg_ptr, x_rows, fg, columns, column_inside, width, last, BLOCK_K, IN_FP32)
    last = tl.where(tl.max(bg.to(tl.int32), 0) > 0, width, 0)
    acc = _accumulate(acc, x_ptr, w_bg_ptr, x_rows, bg, columns, column_inside, width, last, BLOCK_K, IN_FP32)

    pointers = out_ptr + at[:, None] * out_width + columns[None, :]
    out = rounded(acc, out_ptr.dtype.element_ty, IN_FP32)
    tl.store(pointers, out, mask=inside[:, None] & column_inside[None, :])


def split_projection(
    x: Tensor,
    w_fg: Tensor,
    w_bg: Tensor,
    mask: Tensor,
    *,
    selection: Selection,
    threshold: float = 0.05,
    order: Tensor | None = None,
) -> Tensor:
    """(B, T, N) in the dtype of x: each token by the weight of its region.

    Args:
        x: (B, T, K) fp16, bf16 or fp32, finite; K from 1.
        w_fg: (N, K), as x, finite.
        w_bg: as w_fg.
        mask: (B, T) fp32.
        selection: "foreground_above" or "background_below"; see
            :data:`~saishiki.kernels.masked_split_cross_attention.semantics.Selection`.
        order: (B, T) int32, a permutation of each row's tokens, as the attention takes it: tiles take their tokens in
            this order, and those of one region are cheaper.

    Raises ``TypeError`` for other dtypes, ``ValueError`` for shapes, strides, devices or numbers that do not fit, and
    ``NotImplementedError`` from a backward pass.
    """
    _check(x, w_fg, w_bg, mask, selection, threshold)
    if order is not None:
        check_tensor("order", order, mask.shape, (torch.int32,), x.device)
    result: Tensor = _OP(x, w_fg, w_bg, mask, selection, float(threshold), order)
    return result


def _check(x: Tensor, w_fg: Tensor, w_bg: Tensor, mask: Tensor, selection: str, threshold: float) -> None:
    if selection == "blend":
        raise ValueError(
            "expected selection 'foreground_above' or 'background_below', got 'blend': a blend takes from both regions "
            "and needs both projections of every token; call torch.nn.functional.linear twice"
        )
    if selection not in SELECTIONS:
        raise ValueError(f"expected selection 'foreground_above' or 'background_below', got {selection!r}")
    if not math.isfinite(threshold):
        raise ValueError(f"expected threshold to be finite, got {threshold}")
    if x.ndim != 3 or not x.shape[2]:
        raise ValueError(f"expected x (B, T, K) with K from 1, got {tuple(x.shape)}")
    if w_fg.ndim != 2:
        raise ValueError(f"expected w_fg (N, {x.shape[2]}), got {tuple(w_fg.shape)}")
    check_tensor("x", x, x.shape, FLOATS, x.device)
    check_tensor("w_fg", w_fg, (w_fg.shape[0], x.shape[2]), (x.dtype,), x.device)
    check_tensor("w_bg", w_bg, w_fg.shape, (x.dtype,), x.device)
    check_tensor("mask", mask, x.shape[:2], (torch.float32,), x.device)


def _run(
    x: Tensor, w_fg: Tensor, w_bg: Tensor, mask: Tensor, selection: str, threshold: float, order: Tensor | None
) -> Tensor:
    out = torch.empty((*x.shape[:2], w_fg.shape[0]), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    batch, tokens, width = x.shape
    out_width = w_fg.shape[0]
    unit = math.gcd(UNIT, width)
    tiles = TILES_FP32 if x.dtype == torch.float32 else TILES
    grid = (triton.cdiv(batch * tokens, tiles["BLOCK_M"]), triton.cdiv(out_width, tiles["BLOCK_N"]))
    _split_projection_kernel[grid](
        x,
        w_fg,
        w_bg,
        mask,
        order,
        out,
        SELECTIONS.index(selection),
        threshold,
        batch * tokens,
        tokens,
        width,
        out_width,
        tokens * width // unit,
        width // unit,
        HAS_ORDER=order is not None,
        UNIT=unit,
        GROUP=8,
        IN_FP32=INTERPRETED and x.dtype == torch.bfloat16,
        **tiles,
    )
    return out


def _fake(x: Tensor, w_fg: Tensor, *arguments: Any) -> Tensor:
    return torch.empty((*x.shape[:2], w_fg.shape[0]), dtype=x.dtype, device=x.device)


_OP = register_op("split_projection", _run, _fake)


def _variant() -> Variant:
    blocks = {name: TILES[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")}
    pointers = ("x_ptr", "w_fg_ptr", "w_bg_ptr", "out_ptr")
    return Variant(
        name="split_projection_fp16",
        kernel=_split_projection_kernel,
        signature={
            "x_ptr": "*fp16",
            "w_fg_ptr": "*fp16",
            "w_bg_ptr": "*fp16",
            "mask_ptr": "*fp32",
            "order_ptr": "*i32",
            "out_ptr": "*fp16",
            "selection": "i32",
            "threshold": "fp32",
            **dict.fromkeys(("rows", "tokens", "width", "out_width", "x_batch_units", "x_token_units"), "i32"),
        },
        constexprs={**blocks, "HAS_ORDER": True, "UNIT": UNIT, "GROUP": 8, "IN_FP32": False},
        aligned=(*pointers, "width", "out_width"),
        grid=((("rows",), TILES["BLOCK_M"]), (("out_width",), TILES["BLOCK_N"])),
        max_registers=160,
        num_warps=TILES["num_warps"],
        num_stages=TILES["num_stages"],
    )


VARIANTS: tuple[Variant, ...] = (_variant(),)

"""The launches of the convolutions, on tensors that are known to fit."""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from saishiki.kernels.checks import INTERPRETED
from saishiki.kernels.convolution.images_kernel import _from_images_kernel
from saishiki.kernels.convolution.kernel import _convolution_kernel
from saishiki.kernels.convolution.reference import InputNorm
from saishiki.runtime.backends.convolution_kernel import UNIT, sizes
from saishiki.runtime.backends.convolution_tiles import (
    FROM_IMAGES_TILE,
    NORM_TILES,
    TILES,
    TO_IMAGE_TILE,
    ConvolutionShape,
    Tile,
    choose_tile,
)

FP32_TILE = Tile(32, 32, 32, warps=4, stages=2)
SMS_INTERPRETED = 1
"""Multiprocessors to plan for in Triton's interpreter, which runs programs one by one."""


def run_convolution(
    shape: ConvolutionShape,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    norm: InputNorm | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """(B, K, H', W') in channels_last; x and weight too. ``tile``: default, what suits the shape and the GPU."""
    out = torch.empty(_out_shape(shape), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    tiles = TILES if norm is None else NORM_TILES
    tile = tile or _own_tile(x.dtype, tiles[choose_tile(shape, sms=_multiprocessors(x))])
    _launch(shape, x, weight, bias, residual, norm, out, tile)
    return out


def run_to_image(
    shape: ConvolutionShape, x: Tensor, weight: Tensor, bias: Tensor, *, tile: Tile | None = None
) -> Tensor:
    """(B, K, H', W') fp32, contiguous."""
    out = torch.empty(_out_shape(shape), dtype=torch.float32, device=x.device)
    _launch(shape, x, weight, bias, None, None, out, tile or _own_tile(x.dtype, TO_IMAGE_TILE), to_image=True)
    return out


def run_from_images(
    shape: ConvolutionShape,
    x: Tensor,
    x2: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    residual: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """(B, K, H', W') in channels_last and the weight's dtype."""
    out = torch.empty(_out_shape(shape), dtype=weight.dtype, device=x.device, memory_format=torch.channels_last)
    tile = tile or FROM_IMAGES_TILE
    units = _units(shape)
    _from_images_kernel[_grid(shape, tile)](
        x_ptr=x,
        x2_ptr=x if x2 is None else x2,
        w_ptr=weight,
        bias_ptr=bias,
        residual_ptr=out if residual is None else residual,
        out_ptr=out,
        channels_x=x.shape[1],
        channels_x2=0 if x2 is None else x2.shape[1],
        **sizes(shape, **units),
        has_residual=int(residual is not None),
        **_constants(units, tile, weight.dtype),
    )
    return out


def _launch(
    shape: ConvolutionShape,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    norm: InputNorm | None,
    out: Tensor,
    tile: Tile,
    *,
    to_image: bool = False,
) -> None:
    units = _units(shape)
    _convolution_kernel[_grid(shape, tile)](
        x_ptr=x,
        w_ptr=weight,
        bias_ptr=bias,
        # Not None: a compiler takes the branch that is never run, too.
        residual_ptr=out if residual is None else residual,
        statistics_ptr=x if norm is None else norm.statistics,
        norm_weight_ptr=x if norm is None else norm.weight,
        norm_bias_ptr=x if norm is None else norm.bias,
        out_ptr=out,
        **sizes(shape, **units),
        x_units=shape.channels // units["channel_unit"],
        out_units=shape.filters // units["filter_unit"],
        residual_units=shape.filters // units["filter_unit"],
        bias_rows=bias.shape[0] if bias.ndim == 2 else 1,
        bias_stride=bias.stride(0) if bias.ndim == 2 else 0,
        has_residual=int(residual is not None),
        groups=1 if norm is None else norm.statistics.shape[1],
        silu=int(norm is not None and norm.silu),
        NORM=norm is not None,
        TO_IMAGE=to_image,
        **_constants(units, tile, x.dtype),
    )


def _constants(units: dict[str, int], tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    return {
        **{name.upper(): unit for name, unit in units.items()},
        "IN_FP32": INTERPRETED and dtype == torch.bfloat16,
        "BLOCK_M": tile.pixels,
        "BLOCK_N": tile.filters,
        "BLOCK_K": tile.channels,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _units(shape: ConvolutionShape) -> dict[str, int]:
    """The widest loads that channels and stores that filters allow."""
    return {"channel_unit": math.gcd(shape.channels, UNIT), "filter_unit": math.gcd(shape.filters, UNIT)}


def _grid(shape: ConvolutionShape, tile: Tile) -> tuple[int, int, int]:
    pixels = shape.out_height * shape.out_width
    return triton.cdiv(shape.filters, tile.filters), triton.cdiv(pixels, tile.pixels), shape.batch


def _out_shape(shape: ConvolutionShape) -> tuple[int, int, int, int]:
    return shape.batch, shape.filters, shape.out_height, shape.out_width


def _own_tile(dtype: torch.dtype, tile: Tile) -> Tile:
    return FP32_TILE if dtype == torch.float32 else tile


def _multiprocessors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else SMS_INTERPRETED

"""Resizing (..., H, W) arrays in numpy, tap for tap as ``torch.nn.functional.interpolate`` does it in fp32.

Three grids, because published preparations mix them: plain bicubic (a = -0.75, borders clamped), antialiased (a = -0.5
or the triangle, windows cut at the borders and renormalised), and the antialiased grid with ``align_corners``, which
takes its step from the corners but keeps half-pixel centres. Positions are rounded to fp32 as torch rounds them:
with unrounded ones, results differ by 1e-4 at 1000 px.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Kernel = Literal["bicubic", "bilinear"]

# Outputs made by one matrix product: few enough that its input window stays narrow, many enough to fill the product.
_BLOCK = 64
_RADIUS: Mapping[Kernel, int] = {"bicubic": 2, "bilinear": 1}


@dataclass(frozen=True)
class Taps:
    """The samples of an axis that make each output sample: (outputs, taps) indices, and their fp32 weights."""

    indices: NDArray[np.int64]
    weights: Array


def resize_bicubic(x: NDArray[Any], height: int, width: int) -> Array:
    """(..., height, width) fp32: plain bicubic (a = -0.75, half-pixel centres, border clamped), not clamped in value.

    x: (..., H, W), computed in fp32. Raises ``ValueError`` for fewer axes, no samples, or a size below 1.
    """
    x = _checked(x, height, width)
    vertical = plain_taps(x.shape[-2], height, scale=x.shape[-2] / height)
    horizontal = plain_taps(x.shape[-1], width, scale=x.shape[-1] / width)
    return apply_taps(x, vertical, horizontal)


def scale_bicubic(x: NDArray[Any], factor: float) -> Array:
    """(..., floor(H factor), floor(W factor)) fp32: plain bicubic whose grid has the step ``1 / factor`` itself.

    Raises ``ValueError`` as :func:`resize_bicubic` does, and for a factor that leaves no sample.
    """
    if not 0 < factor < math.inf:
        raise ValueError(f"expected a factor above 0, got {factor}")
    height, width = (int(size * factor) for size in x.shape[-2:])
    x = _checked(x, height, width)
    vertical = plain_taps(x.shape[-2], height, scale=1 / factor)
    horizontal = plain_taps(x.shape[-1], width, scale=1 / factor)
    columns = _add_taps(np.ascontiguousarray(x.swapaxes(-1, -2)), horizontal)
    return _add_taps(np.ascontiguousarray(columns.swapaxes(-1, -2)), vertical)


def resize_antialiased(x: NDArray[Any], height: int, width: int, *, kernel: Kernel = "bicubic") -> Array:
    """(..., height, width) fp32: the kernel (bicubic with a = -0.5, or the triangle) widened by the reduction.

    Raises ``ValueError`` as :func:`resize_bicubic` does.
    """
    x = _checked(x, height, width)
    vertical = window_taps(x.shape[-2], height, scale=x.shape[-2] / height, kernel=kernel)
    horizontal = window_taps(x.shape[-1], width, scale=x.shape[-1] / width, kernel=kernel)
    return apply_taps(x, vertical, horizontal)


def resize_corner_aligned(x: NDArray[Any], height: int, width: int) -> Array:
    """(..., height, width) fp32: antialiased bicubic whose step is ``(n - 1) / (m - 1)``, with half-pixel centres.

    What torch gives with both ``antialias`` and ``align_corners``; the published CLIP preparation uses it.
    Raises ``ValueError`` as :func:`resize_bicubic` does.
    """
    x = _checked(x, height, width)
    vertical = window_taps(x.shape[-2], height, scale=_corner_scale(x.shape[-2], height), kernel="bicubic")
    horizontal = window_taps(x.shape[-1], width, scale=_corner_scale(x.shape[-1], width), kernel="bicubic")
    return apply_taps(x, vertical, horizontal)


def plain_taps(size: int, outputs: int, *, scale: float) -> Taps:
    """The four taps of plain bicubic: output i lies at ``scale (i + 0.5) - 0.5``; indices are clamped to the axis."""
    position = _multiply_add(np.arange(outputs) + 0.5, np.float32(scale), np.float32(-0.5))
    first = np.minimum(np.floor(position).astype(np.int64), size - 1)
    t = np.clip(position - first, 0, 1)
    weights = _cubic(np.abs(np.arange(-1, 3) - t[:, None]), -0.75)
    indices = np.clip(first[:, None] + np.arange(-1, 3), 0, size - 1)
    return Taps(indices, weights.astype(np.float32))


def window_taps(size: int, outputs: int, *, scale: float, kernel: Kernel) -> Taps:
    """The taps of an antialiased kernel about ``scale (i + 0.5)``; weights of 0 fill up the narrower windows."""
    step = np.float32(scale)
    stretch = max(step, np.float32(1))
    support = np.float32(_RADIUS[kernel]) * stretch
    centre = (step * (np.arange(outputs) + 0.5)).astype(np.float32)
    first = np.maximum(((centre - support).astype(np.float64) + 0.5).astype(np.int64), 0)
    end = np.minimum(((centre + support).astype(np.float64) + 0.5).astype(np.int64), size)
    indices = first[:, None] + np.arange(int((end - first).max()))
    distance = np.abs(indices - centre[:, None] + 0.5) / stretch
    weights = np.where(indices < end[:, None], _weigh(kernel, distance), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return Taps(np.minimum(indices, size - 1), weights.astype(np.float32))


def apply_taps(x: Array, vertical: Taps, horizontal: Taps) -> Array:
    """(..., H', W') fp32 of x: (..., H, W): the weighted sums, rows first, as products of banded matrices."""
    rows = np.empty((*x.shape[:-1], len(horizontal.weights)), np.float32)
    for made, used, matrix in _blocks(horizontal):
        rows[..., made] = x[..., used] @ matrix.T
    image = np.empty((*x.shape[:-2], len(vertical.weights), rows.shape[-1]), np.float32)
    for made, used, matrix in _blocks(vertical):
        image[..., made, :] = matrix @ rows[..., used, :]
    return image


def _cubic(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """The cubic convolution kernel (Keys 1981) of distances x >= 0; 0 from 2 on."""
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _weigh(kernel: Kernel, distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return _cubic(distance, -0.5) if kernel == "bicubic" else np.maximum(1 - distance, 0)


def _corner_scale(size: int, outputs: int) -> float:
    return (size - 1) / (outputs - 1) if outputs > 1 else 0.0


def _checked(x: NDArray[Any], height: int, width: int) -> Array:
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"expected an array (..., H, W) with samples, got {x.shape}")
    if min(height, width) < 1:
        raise ValueError(f"{x.shape[-1]}x{x.shape[-2]} cannot be resized to {width}x{height}: at least 1x1 is needed")
    return x.astype(np.float32, copy=False)


def _add_taps(x: Array, taps: Taps) -> Array:
    """Four taps along the second axis from the end, rounded as torch's compiled kernel does (the second one first).

    Where a resized mask equals a threshold exactly, the last bit decides on which side it falls.
    """
    rows = [x[..., i, :] for i in taps.indices.T]
    weights = taps.weights.T[..., None]
    total: Array = rows[1] * weights[1]
    for k in (0, 2, 3):
        total = _multiply_add(rows[k], weights[k], total)
    return total


def _multiply_add(a: NDArray[Any], b: Any, c: Any) -> Array:
    """``a b + c`` rounded once to fp32, as a fused multiply-add does: products of fp32 are exact in fp64."""
    exact: NDArray[np.float64] = np.multiply(a, b, dtype=np.float64) + c
    return exact.astype(np.float32)


def _blocks(taps: Taps) -> Iterator[tuple[slice, slice, Array]]:
    """Banded matrices: outputs ``made`` = matrix (outputs, inputs) times the inputs ``used``."""
    for start in range(0, len(taps.weights), _BLOCK):
        made = slice(start, start + _BLOCK)
        indices, weights = taps.indices[made], taps.weights[made]
        low, high = int(indices.min()), int(indices.max()) + 1
        matrix = np.zeros((len(indices), high - low), np.float32)
        np.add.at(matrix, (np.arange(len(indices))[:, None], indices - low), weights)
        yield made, slice(low, high), matrix

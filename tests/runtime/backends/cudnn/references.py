"""What operations mean, in fp64, and random operands for them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.matmul import Matmul
from tests.runtime.backends.cudnn.host_memory import exact, normal


def convolution_arrays(op: Convolution) -> dict[str, np.ndarray]:
    """Dense NHWC images, KRSC filters and a bias as the plan has them."""
    arrays = {
        "x": normal(op.batch, op.height, op.width, op.channels),
        "w": normal(op.filters, *op.kernel, op.channels),
        "bias": normal(op.filters, seed=1),
    }
    return arrays | ({"residual": normal(op.batch, *op.output_size, op.filters, seed=2)} if op.residual else {})


def convolution_reference(op: Convolution, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """y = conv(x, w) + residual + bias in fp64, pixel by pixel."""
    wide = exact(arrays)
    top, left, bottom, right = op.padding
    x = np.pad(wide["x"], ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows, columns = op.kernel
    y = np.zeros((op.batch, *op.output_size, op.filters))
    for i, j in np.ndindex(op.output_size):
        seen = x[:, i * op.stride : i * op.stride + rows, j * op.stride : j * op.stride + columns]
        y[:, i, j] = np.tensordot(seen, wide["w"], axes=((1, 2, 3), (1, 2, 3)))
    return y + wide.get("residual", 0) + wide["bias"]


def matmul_arrays(op: Matmul) -> dict[str, np.ndarray]:
    """Dense rows, a weight and a bias."""
    arrays = {
        "x": normal(op.rows, op.channels),
        "w": normal(op.filters, op.channels),
        "bias": normal(op.filters, seed=1),
    }
    return arrays | ({"residual": normal(op.rows, op.filters, seed=2)} if op.residual else {})


def matmul_reference(arrays: Mapping[str, np.ndarray]) -> Any:
    """y = x w^T + residual + bias in fp64."""
    wide = exact(arrays)
    return wide["x"] @ wide["w"].T + wide.get("residual", 0) + wide["bias"]


def attention_reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """softmax(scale q k^T) v in fp64; q: (B, T, heads, D); k, v: (B, S, heads, D)."""
    scores = np.einsum("bthd,bshd->bhts", q.astype(np.float64), k.astype(np.float64)) * scale
    weights = np.exp(scores)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", weights, v.astype(np.float64))

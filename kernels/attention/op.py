"""Attention of every head: ``out = softmax(q k^T * scale) v``, one launch, no score matrix.

Layout: q (B, heads, T, D), k and v (B, heads, S, D) with D innermost and the other axes anywhere, so that they may be
parts of one packed projection; out (B, T, heads, D), dense, as the projection behind takes it. fp16, bf16 or fp32;
scores, softmax and sums in fp32, the probabilities rounded to the dtype of v before they meet it. The softmax is that
of :mod:`~saishiki.kernels.online_softmax`.

Source: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, eq. 1; Dao et al., arXiv 2205.14135.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from saishiki.kernels.attention.kernel import _attention_kernel
from saishiki.kernels.attention.variants import MAX_HEAD_DIM, constants
from saishiki.kernels.attention.wide_kernel import _wide_attention_kernel
from saishiki.kernels.checks import FLOATS, INTERPRETED
from saishiki.kernels.registration import register_op
from saishiki.runtime.backends.launches.attention import UNIT, WIDE_FROM

MAX_GRID_Y = 65535


def attention_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Of :func:`attention`, the same arguments and result, in any dtype."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).contiguous()


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """(B, T, heads, D) in the dtype of q, dense: ``softmax(q k^T * scale) v``.

    Args:
        q: (B, heads, T, D) fp16, bf16 or fp32; D from 1 to 512, innermost in memory, and the other axes anywhere.
        k: (B, heads, S, D), as q; S from 1.
        v: as k.
        scale: where None, ``1 / sqrt(D)``.

    Raises ``TypeError`` for other dtypes, ``ValueError`` for shapes, strides, devices or numbers that do not fit, and
    ``NotImplementedError`` from a backward pass.
    """
    if q.ndim != 4 or not 1 <= q.shape[3] <= MAX_HEAD_DIM:
        raise ValueError(f"expected q (B, heads, T, D) with D from 1 to {MAX_HEAD_DIM}, got {tuple(q.shape)}")
    if k.ndim != 4 or k.shape[2] < 1:
        raise ValueError(f"expected k (B, heads, S, D) with at least one key, got {tuple(k.shape)}")
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
    if not math.isfinite(scale):
        raise ValueError(f"expected a finite scale, got {scale}")
    _check("q", q, q.shape, FLOATS, q)
    _check("k", k, (*q.shape[:2], k.shape[2], q.shape[3]), (q.dtype,), q)
    _check("v", v, k.shape, (q.dtype,), q)
    result: Tensor = _OP(q, k, v, scale)
    return result


def _check(name: str, x: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], q: Tensor) -> None:
    # check_tensor would refuse the strides.
    if x.dtype not in dtypes:
        raise TypeError(f"expected {name} in {' or '.join(map(str, dtypes))}, got {x.dtype}")
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"expected {name} of shape {tuple(shape)}, got {tuple(x.shape)}")
    if x.device != q.device:
        raise ValueError(f"expected {name} on {q.device}, got {x.device}; move it")
    if x.shape[3] > 1 and x.stride(3) != 1:
        raise ValueError(f"expected D innermost in {name}, got strides {x.stride()}; call .contiguous()")


def _run(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    out = _fake(q, k, v, scale)
    if not out.numel():
        return out
    batch, heads, tokens, head_dim = q.shape
    # Here and not with the other checks, where it would bound the dynamic batch of an exported graph.
    if batch * heads > MAX_GRID_Y:
        raise ValueError(f"expected B * heads of at most {MAX_GRID_Y}, got {batch * heads}; split the batch")
    strides = [stride for x in (q, k, v) for stride in x.stride()[:3]]
    unit = math.gcd(UNIT, *strides)
    tiles: dict[str, Any] = constants(head_dim, fp32=q.dtype == torch.float32)
    kernel = _wide_attention_kernel if head_dim >= WIDE_FROM else _attention_kernel
    kernel[triton.cdiv(tokens, tiles["BLOCK_T"]), batch * heads](
        q,
        k,
        v,
        out,
        scale,
        batch,
        heads,
        tokens,
        k.shape[2],
        *(stride // unit for stride in strides),
        UNIT=unit,
        IN_FP32=INTERPRETED and q.dtype == torch.bfloat16,
        **tiles,
    )
    return out


def _fake(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    batch, heads, tokens, head_dim = q.shape
    return torch.empty((batch, tokens, heads, head_dim), dtype=q.dtype, device=q.device)


_OP = register_op("attention", _run, _fake)

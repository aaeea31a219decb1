"""What ``group_norm_silu`` computes, in plain torch at the dtype it is given."""

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_silu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool = True,
    concat: Tensor | None = None,
    upsample: bool = False,
    residual: Tensor | None = None,
    embedding: Tensor | None = None,
    sums: Tensor | None = None,
    return_input: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The result of :func:`~saishiki.kernels.group_norm_silu.group_norm_silu`, which describes the arguments.

    In fp64 it is the truth, in fp16, bf16 and fp32 the error budget. Everything is computed and rounded at x's dtype,
    as torch does without a fusing compiler; the gradients are torch's own.
    """
    u = F.interpolate(x, scale_factor=2, mode="nearest") if upsample else x
    if concat is not None:
        u = torch.cat([u, concat], dim=1)
    if residual is not None:
        u = u + residual
    if embedding is not None:
        u = u + embedding.to(u.dtype)[:, :, None, None]
    weight, bias = weight.to(u.dtype), bias.to(u.dtype)
    y = (
        torch.group_norm(u, groups, weight, bias, eps)
        if sums is None
        else _from_sums(u, weight, bias, groups, eps, sums)
    )
    y = F.silu(y) if silu else y
    return (y, u) if return_input else y


def _from_sums(u: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, sums: Tensor) -> Tensor:
    batch, channels = u.shape[:2]
    # fp32 at least: a sum of squares leaves the range of fp16.
    exact = torch.promote_types(u.dtype, torch.float32)
    per_group = sums.to(exact).reshape(batch, groups, -1, 2).sum(dim=2)
    mean, square = (per_group / (u.numel() // (batch * groups))).unbind(-1)  # each (B, groups)
    rstd = torch.rsqrt((square - mean * mean).clamp(min=0.0) + eps)
    width = channels // groups
    mean, rstd = (value.repeat_interleave(width, dim=1)[:, :, None, None] for value in (mean, rstd))
    y = (u - mean) * rstd * weight[:, None, None] + bias[:, None, None]
    return y.to(u.dtype)

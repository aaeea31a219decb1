"""What the convolutions compute, in plain torch at the dtype they are given."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class InputNorm:
    """A group norm in front of a convolution, whose statistics are known: (x - mean) * rstd * weight + bias.

    Args:
        statistics: (B, groups, 2) fp32, mean and 1 / sqrt(variance + eps); groups divide C.
        weight: (C,) fp32, as is ``bias``.
        silu: whether SiLU follows.
    """

    statistics: Tensor
    weight: Tensor
    bias: Tensor
    silu: bool = True


def convolution_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    residual: Tensor | None = None,
    norm: InputNorm | None = None,
) -> Tensor:
    """The result of :func:`~saishiki.kernels.convolution.convolution`, which describes the arguments.

    In fp64 it is the truth, in fp16, bf16 and fp32 the error budget: everything is computed and rounded at x's dtype.
    """
    top, left, bottom, right = padding
    x = x if norm is None else _normalised(x, norm)
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, stride=stride)
    y = y if residual is None else y + residual
    bias = bias if bias.ndim == 1 else bias.repeat(y.shape[0] // bias.shape[0], 1)
    return y + bias[..., None, None]


def _normalised(x: Tensor, norm: InputNorm) -> Tensor:
    width = x.shape[1] // norm.statistics.shape[1]
    mean, rstd = norm.statistics.to(x.dtype).repeat_interleave(width, dim=1)[:, :, None, None].unbind(-1)
    y = (x - mean) * rstd * norm.weight.to(x.dtype)[:, None, None] + norm.bias.to(x.dtype)[:, None, None]
    return F.silu(y) if norm.silu else y


def convolution_from_images_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    x2: Tensor | None = None,
    stride: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    residual: Tensor | None = None,
) -> Tensor:
    """Of :func:`~saishiki.kernels.convolution.convolution_from_images`, at the dtype of the weight."""
    images = x if x2 is None else torch.cat([x, x2], dim=1)
    return convolution_reference(
        images.to(weight.dtype), weight, bias, stride=stride, padding=padding, residual=residual
    )


def convolution_to_image_reference(
    x: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: Sequence[int] = (0, 0, 0, 0)
) -> Tensor:
    """Of :func:`~saishiki.kernels.convolution.convolution_to_image`; fp64 stays fp64."""
    y = convolution_reference(x, weight, bias, stride=stride, padding=padding)
    return y.to(torch.promote_types(y.dtype, torch.float32)).contiguous()

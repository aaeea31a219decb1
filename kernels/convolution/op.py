"""``convolution`` and its forms at a network's borders: their checks, and their places in ``torch.ops.saishiki``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from saishiki.kernels.checks import FLOATS, check_tensor
from saishiki.kernels.convolution.launch import run_convolution, run_from_images, run_to_image
from saishiki.kernels.convolution.reference import InputNorm
from saishiki.kernels.registration import register_op
from saishiki.runtime.backends.convolution_tiles import MAX_IMAGE_CHANNELS, ConvolutionShape


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    residual: Tensor | None = None,
    norm: InputNorm | None = None,
) -> Tensor:
    """(B, K, H', W') in channels_last and x's dtype: ``conv(norm(x), weight) + residual + bias``.

    Summed in fp32 and rounded once. What a norm gives is rounded to x's dtype before it is multiplied, and the padding
    is zeros behind the norm.

    Args:
        x: (B, C, H, W) fp16, bf16 or fp32, channels_last.
        weight: (K, C, R, S), as x.
        bias: (K,), or (P, K) with P that divides B, as x; then image b has row b modulo P.
        stride: down and across.
        padding: rows and columns of zeros: top, left, bottom, right.
        residual: (B, K, H', W'), as x.
        norm: applied to x on its way in; see :class:`InputNorm`.

    Raises ``TypeError`` for other dtypes, ``ValueError`` for shapes, layouts, devices or numbers that do not fit. A
    backward pass raises ``NotImplementedError``.
    """
    shape = _shape_of(x.shape, weight, stride, padding)
    _check_image("x", x, x.shape, FLOATS, x.device)
    _check_parameters(weight, bias, x.shape[1], x.dtype, x)
    if residual is not None:
        _check_residual(residual, shape, x.dtype, x)
    if norm is not None:
        _check_norm(norm, x)
    arrays = (None, None, None) if norm is None else (norm.statistics, norm.weight, norm.bias)
    silu = norm is not None and norm.silu
    result: Tensor = _op(x, weight, bias, stride, list(padding), residual, *arrays, silu)
    return result


def convolution_from_images(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    x2: Tensor | None = None,
    stride: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    residual: Tensor | None = None,
) -> Tensor:
    """(B, K, H', W') in channels_last and the weight's dtype: :func:`convolution` of fp32 images rounded to that dtype.

    Args:
        x: (B, C1, H, W) fp32, contiguous.
        weight: (K, C1 + C2, R, S) fp16 or bf16, channels_last; C1 + C2 at most 16.
        bias: (K,), as the weight.
        x2: (B, C2, H, W), as x: channels behind x's.
        residual: (B, K, H', W') in channels_last, as the weight.

    Raises as :func:`convolution` does.
    """
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    if channels > MAX_IMAGE_CHANNELS:
        raise ValueError(f"expected images of at most {MAX_IMAGE_CHANNELS} channels together, got {channels}")
    shape = _shape_of((x.shape[0], channels, *x.shape[2:]), weight, stride, padding)
    check_tensor("x", x, x.shape, (torch.float32,), x.device)
    if x2 is not None:
        check_tensor("x2", x2, (x.shape[0], x2.shape[1], *x.shape[2:]), (torch.float32,), x.device)
    if weight.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"expected weight in torch.float16 or torch.bfloat16, got {weight.dtype}")
    _check_parameters(weight, bias, channels, weight.dtype, x, per_image=False)
    if residual is not None:
        _check_residual(residual, shape, weight.dtype, x)
    result: Tensor = _from_images_op(x, x2, weight, bias, stride, list(padding), residual)
    return result


def convolution_to_image(
    x: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: Sequence[int] = (0, 0, 0, 0)
) -> Tensor:
    """(B, K, H', W') fp32, contiguous: :func:`convolution`, rounded to x's dtype all the same; for few filters."""
    _shape_of(x.shape, weight, stride, padding)
    _check_image("x", x, x.shape, FLOATS, x.device)
    _check_parameters(weight, bias, x.shape[1], x.dtype, x)
    result: Tensor = _to_image_op(x, weight, bias, stride, list(padding))
    return result


def _shape_of(x: Sequence[int], weight: Tensor, stride: int, padding: Sequence[int]) -> ConvolutionShape:
    if len(x) != 4:
        raise ValueError(f"expected x (B, C, H, W), got {tuple(x)}")
    if weight.ndim != 4:
        raise ValueError(f"expected weight (K, {x[1]}, R, S), got {tuple(weight.shape)}")
    if len(padding) != 4:
        raise ValueError(f"expected padding (top, left, bottom, right), got {tuple(padding)}")
    filters, _, taps_r, taps_s = weight.shape
    top, left, bottom, right = padding
    batch, channels, height, width = x
    return ConvolutionShape(
        batch, height, width, channels, filters, (taps_r, taps_s), stride, (top, left, bottom, right)
    )


def _check_image(
    name: str, image: Tensor, shape: Sequence[int], dtypes: Sequence[torch.dtype], device: torch.device
) -> None:
    # check_tensor would refuse the layout.
    if tuple(image.shape) != tuple(shape):
        raise ValueError(f"expected {name} of shape {tuple(shape)}, got {tuple(image.shape)}")
    if not image.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"{name} is not channels_last; call .contiguous(memory_format=torch.channels_last)")
    nhwc = image.permute(0, 2, 3, 1)
    check_tensor(name, nhwc, nhwc.shape, dtypes, device)


def _check_residual(residual: Tensor, shape: ConvolutionShape, dtype: torch.dtype, x: Tensor) -> None:
    expected = (shape.batch, shape.filters, shape.out_height, shape.out_width)
    _check_image("residual", residual, expected, (dtype,), x.device)


def _check_parameters(
    weight: Tensor, bias: Tensor, channels: int, dtype: torch.dtype, x: Tensor, *, per_image: bool = True
) -> None:
    _check_image("weight", weight, (weight.shape[0], channels, *weight.shape[2:]), (dtype,), x.device)
    rows = bias.shape[:1] if per_image and bias.ndim == 2 else ()
    check_tensor("bias", bias, (*rows, weight.shape[0]), (dtype,), x.device)
    if rows and (not rows[0] or x.shape[0] % rows[0]):
        raise ValueError(f"expected as many rows of bias as divide the {x.shape[0]} images, got {rows[0]}")


def _check_norm(norm: InputNorm, x: Tensor) -> None:
    groups = norm.statistics.shape[1] if norm.statistics.ndim == 3 else 0
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(
            f"expected norm.statistics (B, groups, 2) with groups that divide the {x.shape[1]} channels, got "
            f"{tuple(norm.statistics.shape)}"
        )
    single = (torch.float32,)
    check_tensor("norm.statistics", norm.statistics, (x.shape[0], groups, 2), single, x.device)
    check_tensor("norm.weight", norm.weight, (x.shape[1],), single, x.device)
    check_tensor("norm.bias", norm.bias, (x.shape[1],), single, x.device)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: list[int],
    residual: Tensor | None,
    statistics: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    silu: bool,
) -> Tensor:
    shape = _shape_of(x.shape, weight, stride, padding)
    norm = None
    if statistics is not None and norm_weight is not None and norm_bias is not None:
        norm = InputNorm(statistics, norm_weight, norm_bias, silu)
    return run_convolution(shape, x, weight, bias, residual=residual, norm=norm)


def _run_from_images(
    x: Tensor,
    x2: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: list[int],
    residual: Tensor | None,
) -> Tensor:
    shape = _shape_of((x.shape[0], weight.shape[1], *x.shape[2:]), weight, stride, padding)
    return run_from_images(shape, x, x2, weight, bias, residual=residual)


def _run_to_image(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: list[int]) -> Tensor:
    return run_to_image(_shape_of(x.shape, weight, stride, padding), x, weight, bias)


def _like(
    x: Tensor, weight: Tensor, stride: int, padding: list[int], dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    height, width = (
        (x.shape[2 + i] + padding[i] + padding[2 + i] - weight.shape[2 + i]) // stride + 1 for i in range(2)
    )
    out = (x.shape[0], weight.shape[0], height, width)
    return torch.empty(out, dtype=dtype, device=x.device, memory_format=layout)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: list[int],
    residual: Tensor | None,
    statistics: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    silu: bool,
) -> Tensor:
    return _like(x, weight, stride, padding, x.dtype, torch.channels_last)


def _fake_from_images(
    x: Tensor,
    x2: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: list[int],
    residual: Tensor | None,
) -> Tensor:
    return _like(x, weight, stride, padding, weight.dtype, torch.channels_last)


def _fake_to_image(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: list[int]) -> Tensor:
    return _like(x, weight, stride, padding, torch.float32, torch.contiguous_format)


_op = register_op("convolution", _run, _fake)
_from_images_op = register_op("convolution_from_images", _run_from_images, _fake_from_images)
_to_image_op = register_op("convolution_to_image", _run_to_image, _fake_to_image)

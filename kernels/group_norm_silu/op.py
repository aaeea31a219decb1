"""``group_norm_silu``: its checks, its place in ``torch.ops.saishiki``, and its two launches."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from saishiki.kernels.checks import FLOATS, check_tensor
from saishiki.kernels.group_norm_silu.launch import LAYOUTS, Input, apply, compute_statistics
from saishiki.kernels.registration import register_op

MAX_PIXELS = 2**30
"""Of an image, so that a pixel's number fits an int32."""
DIFFERENT_LAYOUTS = "x, concat and residual differ in layout; bring all into one, contiguous or channels_last"


def group_norm_silu(
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
    """``silu(group_norm(u))`` of ``u = (nearest2x(x) | concat) + residual + embedding``: (B, C, H', W'), dtype of x.

    u is summed in fp32 and not rounded before it is normalised. Mean and variance are fp32, by Welford's recurrence and
    Chan's merging, so a mean much larger than the deviation does no harm; the same input gives the same bits. A NaN
    makes its group of its image NaN.

    Args:
        x: (B, C1, H, W) fp16, bf16 or fp32, contiguous or channels_last; the result has the same layout. Where the
            shape leaves both open (one channel, one pixel), concat and residual decide, else the result is contiguous.
        weight: (C,) fp32 or x's dtype, as is bias.
        groups: must divide C.
        silu: False: GroupNorm alone.
        concat: (B, C2, H', W'), a skip's channels, after x's: C = C1 + C2.
        upsample: x alone, nearest neighbour by two: H' = 2 H and W' = 2 W; else H' = H and W' = W.
        residual: (B, C, H', W'), dtype and layout of x.
        embedding: (B, C) fp32 or x's dtype, added to every pixel.
        sums: (B, C, 2) fp32, sum and sum of squares of u over the H' W' pixels of each channel, as a convolution's
            epilogue can give; saves a pass over u. The variance is then E[u^2] - E[u]^2, at least 0, and loses the
            digits that the two have in common: its relative error is about ``2**-24 * (mean / deviation)**2``.
        return_input: also returns u, dense and rounded to x's dtype, as the convolution of a skip connection needs it.

    Raises ``TypeError`` for other dtypes, ``ValueError`` for shapes, layouts or devices that do not fit, for ``groups``
    that do not divide C and for ``eps`` that is not above 0. A backward pass raises ``NotImplementedError``.

    Source: Wu and He, "Group Normalization", arXiv 1803.08494, eq. 1; Chan, Golub and LeVeque, "Algorithms for
    Computing the Sample Variance", The American Statistician 37 (1983).
    """
    u = Input(x, concat, upsample, residual, embedding)
    _check_images(u)
    _check_numbers(u.out_shape[1], groups, eps)
    _check_vectors(u, weight, bias, sums)
    results: list[Tensor] = _op(
        x, weight, bias, groups, float(eps), silu, concat, upsample, residual, embedding, sums, return_input
    )
    return (results[0], results[1]) if return_input else results[0]


def _check_images(u: Input) -> None:
    x, concat, residual = u.x, u.concat, u.residual
    if x.ndim != 4:
        raise ValueError(f"expected x (B, C, H, W), got {tuple(x.shape)}")
    _check_image("x", x, x.shape, x, FLOATS)
    if concat is not None:
        if concat.ndim != 4:
            raise ValueError(f"expected concat (B, C, H, W), got {tuple(concat.shape)}")
        _check_image("concat", concat, (x.shape[0], concat.shape[1], *u.out_shape[2:]), x, (x.dtype,))
    if u.out_pixels > MAX_PIXELS:
        raise ValueError(f"expected an output of at most {MAX_PIXELS} pixels an image, got {u.out_pixels}")
    if residual is not None:
        _check_image("residual", residual, u.out_shape, x, (x.dtype,))
    if not u.layouts:
        raise ValueError(DIFFERENT_LAYOUTS)


def _check_image(name: str, image: Tensor, shape: Sequence[int], x: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    # check_tensor would refuse channels_last.
    if image.dtype not in dtypes:
        raise TypeError(f"expected {name} in {' or '.join(map(str, dtypes))}, got {image.dtype}")
    if tuple(image.shape) != tuple(shape):
        raise ValueError(f"expected {name} of shape {tuple(shape)}, got {tuple(image.shape)}")
    if image.device != x.device:
        raise ValueError(f"expected {name} on {x.device}, got {image.device}; move it")
    if not any(image.is_contiguous(memory_format=layout) for layout in LAYOUTS):
        raise ValueError(f"{name} is neither contiguous nor channels_last; call .contiguous()")


def _check_numbers(channels: int, groups: int, eps: float) -> None:
    if groups < 1 or channels < 1 or channels % groups:
        raise ValueError(f"expected groups that divide the {channels} channels, got {groups}")
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"expected a finite eps above 0, got {eps}")


def _check_vectors(u: Input, weight: Tensor, bias: Tensor, sums: Tensor | None) -> None:
    dtypes = tuple({torch.float32: None, u.x.dtype: None})
    batch, channels = u.out_shape[:2]
    check_tensor("weight", weight, (channels,), dtypes, u.x.device)
    check_tensor("bias", bias, (channels,), dtypes, u.x.device)
    if u.embedding is not None:
        check_tensor("embedding", u.embedding, (batch, channels), dtypes, u.x.device)
    if sums is not None:
        check_tensor("sums", sums, (batch, channels, 2), (torch.float32,), u.x.device)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    concat: Tensor | None,
    upsample: bool,
    residual: Tensor | None,
    embedding: Tensor | None,
    sums: Tensor | None,
    return_input: bool,
) -> list[Tensor]:
    u = Input(x, concat, upsample, residual, embedding)
    if not u.layouts:
        raise ValueError(DIFFERENT_LAYOUTS)
    if 0 in u.out_shape:
        return [u.new_output() for _ in range(1 + return_input)]
    statistics = compute_statistics(u, groups, eps) if sums is None else sums
    return apply(
        u,
        statistics,
        weight,
        bias,
        groups=groups,
        eps=eps,
        silu=silu,
        from_sums=sums is not None,
        return_input=return_input,
    )


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    concat: Tensor | None,
    upsample: bool,
    residual: Tensor | None,
    embedding: Tensor | None,
    sums: Tensor | None,
    return_input: bool,
) -> list[Tensor]:
    u = Input(x, concat, upsample, residual, embedding)
    return [u.new_output() for _ in range(1 + return_input)]


_op = register_op("group_norm_silu", _run, _fake)

"""How a convolution ends: residual and bias onto the fp32 sums, one rounding, and the store."""

# ruff: noqa: N803

import triton
import triton.language as tl

from saishiki.kernels.rounding import rounded


@triton.jit
def _plus_bias(acc, bias_ptr, b, n, filters, bias_rows, bias_stride):  # type: ignore[no-untyped-def]
    """acc and the bias of image b, if there is one."""
    if bias_rows > 0:
        row = (b % bias_rows).to(tl.int64) * bias_stride
        acc += tl.load(bias_ptr + row + n, mask=n < filters, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit  # type: ignore[untyped-decorator]
def store_nhwc(  # type: ignore[no-untyped-def]
    acc,  # [BLOCK_M, BLOCK_N] fp32
    bias_ptr,
    residual_ptr,
    out_ptr,
    b,
    p,
    n,
    out_pixels,
    filters,
    out_stride,
    residual_stride,
    bias_rows,
    bias_stride,
    has_residual,
    IN_FP32: tl.constexpr,
):
    """Filters n of pixels p of image b, in the dtype of out."""
    known = (p < out_pixels)[:, None] & (n < filters)[None, :]
    if has_residual:
        residual_ptr += b.to(tl.int64) * out_pixels * residual_stride
        residual = tl.load(residual_ptr + (p[:, None] * residual_stride + n[None, :]), mask=known, other=0.0)
        acc += residual.to(tl.float32)
    acc = _plus_bias(acc, bias_ptr, b, n, filters, bias_rows, bias_stride)
    out_ptr += b.to(tl.int64) * out_pixels * out_stride
    out = rounded(acc, out_ptr.dtype.element_ty, IN_FP32)
    tl.store(out_ptr + (p[:, None] * out_stride + n[None, :]), out, mask=known)


@triton.jit  # type: ignore[untyped-decorator]
def store_nchw(  # type: ignore[no-untyped-def]
    acc,  # [BLOCK_M, BLOCK_N] fp32
    bias_ptr,
    out_ptr,
    b,
    p,
    n,
    out_pixels,
    filters,
    bias_rows,
    bias_stride,
    DTYPE: tl.constexpr,
    IN_FP32: tl.constexpr,
):
    """The same in planes of fp32, of numbers that DTYPE has; without a residual."""
    acc = _plus_bias(acc, bias_ptr, b, n, filters, bias_rows, bias_stride)
    known = (p < out_pixels)[:, None] & (n < filters)[None, :]
    out_ptr += b.to(tl.int64) * out_pixels * filters
    offsets = n[None, :] * out_pixels + p[:, None]
    tl.store(out_ptr + offsets, rounded(acc, DTYPE, IN_FP32).to(tl.float32), mask=known)

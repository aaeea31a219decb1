"""Launches of convolutions and products by the kernels of ``saishiki.kernels.convolution``."""

from saishiki.runtime.backends.convolution_kernel import (
    Images,
    Norm,
    Operands,
    convolution_launch,
    from_images_launch,
    matmul_launch,
    to_image_launch,
)
from saishiki.runtime.backends.convolution_tiles import ConvolutionShape
from saishiki.runtime.backends.launches.launch import Address, Launch
from saishiki.runtime.backends.launches.operand import address_of
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.extents import Extents, Strided, resolve
from saishiki.runtime.plan.ops import Convolution, InputNorm, Matmul

HALF_BYTES = 2


def convolution_launches(op: Convolution, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch."""
    shape = convolution_shape(op, extents)
    bias_shape = extents.shape(op.bias)
    bias = address(op.bias) + op.bias_offset * HALF_BYTES
    residual = address(op.residual) if op.residual else 0
    if op.from_images:
        if len(bias_shape) == 2 or op.norm:
            raise BackendError(
                "no kernel reads images and normalises them or adds a vector of the step; use another backend"
            )
        each = [(address(name), extents.shape(name)[1]) for name in op.x]
        images = Images(*(value for pair in each for value in pair))
        found = from_images_launch(
            shape, images, w=address(op.weight), bias=bias, out=address(op.out), residual=residual
        )
        return (Launch(*found),)
    operands = Operands(
        x=address(op.x[0]),
        w=address(op.weight),
        bias=bias,
        out=address(op.out),
        residual=residual,
        bias_rows=bias_shape[0] if len(bias_shape) == 2 else 1,
        bias_stride=bias_shape[1] if len(bias_shape) == 2 else 0,
        norm=_norm(op.norm, extents, address) if op.norm else None,
    )
    if op.to_image:
        return (Launch(*to_image_launch(shape, operands)),)
    return (Launch(*convolution_launch(shape, operands, sms=sms)),)


def _norm(norm: InputNorm, extents: Extents, address: Address) -> Norm:
    groups = extents.shape(norm.statistics)[1]
    return Norm(address(norm.statistics), address(norm.weight), address(norm.bias), groups, norm.silu)


def convolution_shape(op: Convolution, extents: Extents) -> ConvolutionShape:
    """The sizes of a convolution, as the kernels and cuDNN take them."""
    filters, *taps, channels = extents.shape(op.weight)
    if op.from_images:
        batch, _, height, width = extents.shape(op.x[0])
    else:
        batch, height, width, _ = extents.shape(op.x[0])
    filters = extents.shape(op.out)[1] if op.to_image else filters
    return ConvolutionShape(batch, height, width, channels, filters, (taps[0], taps[1]), op.stride, op.padding)


def matmul_launches(op: Matmul, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch."""
    count, channels = extents.strided_shape(op.x)
    filters = extents.shape(op.weight)[0]
    operands = Operands(
        x=address_of(op.x, extents, address),
        w=address(op.weight),
        bias=address(op.bias) if op.bias else 0,
        out=address_of(op.out, extents, address),
        residual=address_of(op.residual, extents, address) if op.residual else 0,
        x_stride=_row(op.x, extents),
        out_stride=_row(op.out, extents),
        residual_stride=_row(op.residual, extents) if op.residual else 0,
    )
    to_fp32 = extents.of[op.out.buffer].dtype == "float32"
    return (Launch(*matmul_launch(count, channels, filters, operands, sms=sms, to_fp32=to_fp32)),)


def _row(part: Strided, extents: Extents) -> int:
    """From one row to the next; 0, which stands for dense rows, where there is one alone."""
    count = resolve(part.shape[0], extents.sizes)
    stride = resolve(part.strides[0], extents.sizes)
    if count > 1 and not stride:
        raise BackendError(f"no kernel multiplies rows that repeat, as those of {part.buffer}; use another backend")
    return stride if count > 1 else 0

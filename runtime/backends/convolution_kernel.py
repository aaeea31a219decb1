"""Launching the convolution kernels, :mod:`saishiki.kernels.convolution`: which cubin, and what it is passed.

Images are NHWC fp16, their channels a multiple of 8; weights are (K, R, S, C), dense, with the image's C. Nothing here
touches a device: a launch is a kernel's name and its arguments.
"""

from dataclasses import dataclass

from saishiki.runtime.backends.convolution_tiles import MAX_IMAGE_CHANNELS, MAX_NUMBERS, ConvolutionShape, choose_tile

UNIT = 8
"""Channels, filters and strides of a cubin are multiples of this: 16 bytes of fp16 at a time."""


@dataclass(frozen=True)
class Norm:
    """A group norm in front of a convolution, applied on the way in: addresses, and how.

    Args:
        statistics: (B, groups, 2) fp32, as ``group_norm_silu``'s statistics kernel leaves them.
        weight: (C,) fp32, as is ``bias``.
        groups: divide C.
        silu: whether SiLU follows.
    """

    statistics: int
    weight: int
    bias: int
    groups: int
    silu: bool


@dataclass(frozen=True)
class Operands:
    """Addresses of what a convolution reads and writes, and how that lies there.

    Args:
        bias: ``bias_rows`` vectors (K,) fp16, ``bias_stride`` numbers apart; image b takes that of b modulo them. 0 for
            none.
        residual: of the output's shape, added to it; 0 for none.
        x_stride: numbers from one pixel of x to the next; 0 where it is dense. The same for out and residual.
    """

    x: int
    w: int
    bias: int
    out: int
    residual: int = 0
    x_stride: int = 0
    out_stride: int = 0
    residual_stride: int = 0
    bias_rows: int = 1
    bias_stride: int = 0
    norm: Norm | None = None


@dataclass(frozen=True)
class Images:
    """Addresses of a network's fp32 NCHW inputs, the second's channels behind the first's; 0 where it has one."""

    x: int
    channels: int
    x2: int = 0
    channels2: int = 0


Launch = tuple[str, dict[str, int]]
"""A kernel's name in ``runtime/cubins``, and its arguments."""


def convolution_launch(shape: ConvolutionShape, at: Operands, *, sms: int, to_fp32: bool = False) -> Launch:
    """NHWC fp16 into NHWC fp16: fp16(conv(x, w) + residual + bias), x normalised on its way in where ``at.norm`` says.

    Args:
        sms: multiprocessors of the GPU, which the tile is chosen for.
        to_fp32: out is fp32, and nothing is rounded; without a norm.

    Raises ``ValueError`` for channels, filters or strides that are not multiples of 8, and for operands that do not go
    together.
    """
    _check_units(channels=shape.channels, filters=shape.filters)
    if to_fp32 and at.norm:
        raise ValueError("a convolution into fp32 has no norm in front; launch it by itself")
    tile = "to_fp32" if to_fp32 else f"{'norm_' if at.norm else ''}{choose_tile(shape, sms=sms)}"
    return f"convolution_{tile}_fp16", _addresses(at) | sizes(shape, UNIT, UNIT) | _places(shape, at, filter_unit=UNIT)


def matmul_launch(rows: int, channels: int, filters: int, at: Operands, *, sms: int, to_fp32: bool = False) -> Launch:
    """(rows, K) times (N, K), as the 1x1 convolution of a picture of one column: fp16(x w^T + residual + bias).

    ``channels`` is K and ``filters`` N; otherwise as :func:`convolution_launch`.
    """
    shape = ConvolutionShape(1, rows, 1, channels, filters, (1, 1), 1, (0, 0, 0, 0))
    return convolution_launch(shape, at, sms=sms, to_fp32=to_fp32)


def to_image_launch(shape: ConvolutionShape, at: Operands) -> Launch:
    """A network's last convolution: NHWC fp16 into dense NCHW fp32, each number rounded to fp16 before.

    ``shape.filters`` are those of the image, any few; the weights may have more. Raises ``ValueError`` for channels or
    a stride that is not a multiple of 8, and for a residual or a norm.
    """
    _check_units(channels=shape.channels)
    if at.residual or at.norm or at.out_stride:
        raise ValueError("a convolution into an image is dense, without residual and norm; launch them by themselves")
    return "convolution_to_image_fp16", _addresses(at) | sizes(shape, UNIT, 1) | _places(shape, at, filter_unit=1)


def from_images_launch(
    shape: ConvolutionShape, images: Images, *, w: int, bias: int, out: int, residual: int = 0
) -> Launch:
    """A network's first convolution: of one or two NCHW fp32 images, each number rounded to fp16, into NHWC fp16.

    ``shape.channels`` are those of the weights: 8 or 16, zeros behind the images' own. Raises ``ValueError`` otherwise.
    The residual is dense; 0 for none.
    """
    _check_units(channels=shape.channels, filters=shape.filters)
    given = images.channels + images.channels2
    if not given <= shape.channels <= MAX_IMAGE_CHANNELS:
        raise ValueError(
            f"expected weights of 8 or {MAX_IMAGE_CHANNELS} channels, no less than the images' {given}, got "
            f"{shape.channels}"
        )
    arguments = {
        "x_ptr": images.x,
        "x2_ptr": images.x2 or images.x,
        "w_ptr": w,
        "bias_ptr": bias,
        "residual_ptr": residual,
        "out_ptr": out,
        "channels_x": images.channels,
        "channels_x2": images.channels2,
        "has_residual": int(bool(residual)),
    }
    return "convolution_from_images_fp16", arguments | sizes(shape, UNIT, UNIT)


def sizes(shape: ConvolutionShape, channel_unit: int, filter_unit: int) -> dict[str, int]:
    """The arguments that every kernel has, and no address is."""
    return {
        "batch": shape.batch,
        "height": shape.height,
        "width": shape.width,
        "channel_units": shape.channels // channel_unit,
        "out_height": shape.out_height,
        "out_width": shape.out_width,
        "filter_units": shape.filters // filter_unit,
        "taps_r": shape.taps[0],
        "taps_s": shape.taps[1],
        "stride": shape.stride,
        "pad_top": shape.padding[0],
        "pad_left": shape.padding[1],
    }


def _places(shape: ConvolutionShape, at: Operands, *, filter_unit: int) -> dict[str, int]:
    if at.bias_rows < 1 or shape.batch % at.bias_rows:
        raise ValueError(f"expected as many rows of bias as divide the {shape.batch} images, got {at.bias_rows}")
    pixels, out_pixels = shape.height * shape.width, shape.out_height * shape.out_width
    return {
        "x_units": _stride("x", at.x_stride, shape.channels, pixels) // UNIT,
        "out_units": _stride("out", at.out_stride, shape.filters, out_pixels, filter_unit) // filter_unit,
        "residual_units": _stride("residual", at.residual_stride, shape.filters, out_pixels, filter_unit)
        // filter_unit,
        "bias_rows": at.bias_rows if at.bias else 0,
        "bias_stride": at.bias_stride,
        "has_residual": int(bool(at.residual)),
        "groups": at.norm.groups if at.norm else 1,
        "silu": int(at.norm.silu) if at.norm else 0,
    }


def _stride(name: str, given: int, channels: int, pixels: int, unit: int = UNIT) -> int:
    stride = given or channels
    if stride < channels or stride % unit:
        raise ValueError(f"expected {name}_stride in multiples of {unit} from {channels}, got {given}")
    if pixels * stride > MAX_NUMBERS:
        raise ValueError(f"expected at most {MAX_NUMBERS} numbers from one {name} to the next, got {pixels * stride}")
    return stride


def _addresses(at: Operands) -> dict[str, int]:
    return {
        "x_ptr": at.x,
        "w_ptr": at.w,
        "bias_ptr": at.bias,
        "residual_ptr": at.residual,
        "statistics_ptr": at.norm.statistics if at.norm else 0,
        "norm_weight_ptr": at.norm.weight if at.norm else 0,
        "norm_bias_ptr": at.norm.bias if at.norm else 0,
        "out_ptr": at.out,
    }


def _check_units(**counts: int) -> None:
    for name, count in counts.items():
        if count % UNIT:
            raise ValueError(f"expected {name} in multiples of {UNIT}, got {count}; pad image and weights with zeros")

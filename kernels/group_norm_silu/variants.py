"""The variants that are shipped as cubins: fp16, for AnimeDiffusion's U-Net.

Its norms have 32 groups in 64 to 1024 channels: in the decoder after the concat with a skip, where a level begins after
the upsampling of what comes from below; after the time embedding in the second half of each block; without SiLU before
the attention, and on its sum with the attention's result behind it. Weight, bias and embedding are fp32. Groups may be
of any width, channels are multiples of 16; NCHW needs pixels to be so instead.
"""

from saishiki.kernels.group_norm_silu.apply_kernel import _apply_kernel
from saishiki.kernels.group_norm_silu.statistics_kernel import _statistics_kernel
from saishiki.kernels.variant import Variant
from saishiki.runtime.backends.group_norm_tiles import (
    APPLY_TILES,
    PIXEL_UNIT,
    STATISTICS_CHANNELS,
    STATISTICS_PIXELS,
    STATISTICS_ROWS,
    STATISTICS_STAGES,
)

_IMAGES = dict.fromkeys(("x_ptr", "concat_ptr", "residual_ptr"), "*fp16")
_SIZES = dict.fromkeys(("batch", "pixels", "channels", "channels_x", "width", "groups", "channel_blocks"), "i32")


def _aligned(signature: dict[str, str], *, channels_last: bool) -> tuple[str, ...]:
    pointers = tuple(name for name in signature if name.endswith("_ptr"))
    return (*pointers, "channels", "channels_x") if channels_last else (*pointers, "pixels")


def _statistics(
    name: str,
    *,
    concat: bool = False,
    upsample: bool = False,
    residual: bool = False,
    embedding: bool = False,
    channels_last: bool = True,
) -> Variant:
    signature = {
        **_IMAGES,
        **dict.fromkeys(("embedding_ptr", "partials_ptr"), "*fp32"),
        "tickets_ptr": "*i32",
        "statistics_ptr": "*fp32",
        **_SIZES,
        **dict.fromkeys(("slices", "chunks"), "i32"),
        "eps": "fp32",
    }
    return Variant(
        name=f"group_norm_silu_statistics_{name}_fp16",
        kernel=_statistics_kernel,
        signature=signature,
        constexprs={
            "HAS_CONCAT": concat,
            "UPSAMPLE": upsample,
            "HAS_RESIDUAL": residual,
            "HAS_EMBEDDING": embedding,
            "CHANNELS_LAST": channels_last,
            "PIXEL_UNIT": PIXEL_UNIT,
            "BLOCK_P": STATISTICS_PIXELS,
            "BLOCK_C": STATISTICS_CHANNELS,
            "BLOCK_ROWS": STATISTICS_ROWS,
            "STAGES": STATISTICS_STAGES,
        },
        aligned=_aligned(signature, channels_last=channels_last),
        grid=((("channel_blocks", "chunks", "batch"), 1),),
        max_registers=128,
    )


def _apply(
    name: str,
    *,
    concat: bool = False,
    upsample: bool = False,
    residual: bool = False,
    embedding: bool = False,
    from_sums: bool = False,
    return_input: bool = False,
    silu: bool = True,
    channels_last: bool = True,
) -> Variant:
    signature = {
        **_IMAGES,
        **dict.fromkeys(("embedding_ptr", "statistics_ptr", "weight_ptr", "bias_ptr"), "*fp32"),
        **dict.fromkeys(("out_ptr", "input_ptr"), "*fp16"),
        **_SIZES,
        "pixel_blocks": "i32",
        "eps": "fp32",
    }
    block_p, block_c = APPLY_TILES[channels_last]
    return Variant(
        name=f"group_norm_silu_apply_{name}_fp16",
        kernel=_apply_kernel,
        signature=signature,
        constexprs={
            "HAS_CONCAT": concat,
            "UPSAMPLE": upsample,
            "HAS_RESIDUAL": residual,
            "HAS_EMBEDDING": embedding,
            "FROM_SUMS": from_sums,
            "RETURN_INPUT": return_input,
            "SILU": silu,
            "CHANNELS_LAST": channels_last,
            "IN_FP32": False,
            "PIXEL_UNIT": PIXEL_UNIT,
            "BLOCK_P": block_p,
            "BLOCK_C": block_c,
        },
        aligned=_aligned(signature, channels_last=channels_last),
        grid=((("channel_blocks", "pixel_blocks", "batch"), 1),),
        max_registers=80,
    )


VARIANTS: tuple[Variant, ...] = (
    _statistics("nhwc"),
    _statistics("embedding_nhwc", embedding=True),
    _statistics("concat_nhwc", concat=True),
    _statistics("concat_upsample_nhwc", concat=True, upsample=True),
    _statistics("residual_nhwc", residual=True),
    _statistics("nchw", channels_last=False),
    _apply("nhwc"),
    _apply("no_silu_nhwc", silu=False),
    _apply("embedding_nhwc", embedding=True),
    _apply("concat_nhwc", concat=True),
    _apply("concat_input_nhwc", concat=True, return_input=True),
    _apply("concat_upsample_input_nhwc", concat=True, upsample=True, return_input=True),
    _apply("residual_input_nhwc", residual=True, return_input=True),
    _apply("sums_nhwc", from_sums=True),
    _apply("nchw", channels_last=False),
)

"""The variants that are shipped as cubins: fp16, each tile with and without a norm in front, and a network's borders.

A norm in front is compiled for the GPUs alone that plans fold it on,
:data:`saishiki.runtime.backends.convolution_tiles.NORM_TARGETS`.
"""

from collections.abc import Mapping

from saishiki.kernels.convolution.images_kernel import _from_images_kernel
from saishiki.kernels.convolution.kernel import _convolution_kernel
from saishiki.kernels.variant import SMS, Variant
from saishiki.runtime.backends.convolution_kernel import UNIT
from saishiki.runtime.backends.convolution_tiles import (
    FROM_IMAGES_TILE,
    NORM_TARGETS,
    NORM_TILES,
    TILES,
    TO_IMAGE_TILE,
    Tile,
)

NORM_SMS = tuple(sm for sm in SMS if f"sm{sm}" in NORM_TARGETS)

_SIZES = dict.fromkeys(
    (
        *("batch", "height", "width", "channel_units", "out_height", "out_width", "filter_units", "taps_r", "taps_s"),
        *("stride", "pad_top", "pad_left"),
    ),
    "i32",
)
_SIGNATURE = {
    **dict.fromkeys(("x_ptr", "w_ptr", "bias_ptr", "residual_ptr"), "*fp16"),
    **dict.fromkeys(("statistics_ptr", "norm_weight_ptr", "norm_bias_ptr"), "*fp32"),
    "out_ptr": "*fp16",
    **_SIZES,
    **dict.fromkeys(("x_units", "out_units", "residual_units", "bias_rows", "bias_stride"), "i32"),
    **dict.fromkeys(("has_residual", "groups", "silu"), "i32"),
}
_FROM_IMAGES = {
    **dict.fromkeys(("x_ptr", "x2_ptr"), "*fp32"),
    **dict.fromkeys(("w_ptr", "bias_ptr", "residual_ptr", "out_ptr"), "*fp16"),
    **dict.fromkeys(("channels_x", "channels_x2"), "i32"),
    **_SIZES,
    "has_residual": "i32",
}


def _variant(
    name: str,
    tile: Tile,
    max_registers: int,
    *,
    norm: bool = False,
    to_image: bool = False,
    to_fp32: bool = False,
    from_images: bool = False,
) -> Variant:
    signature: Mapping[str, str] = _FROM_IMAGES if from_images else _SIGNATURE
    signature = {**signature, "out_ptr": "*fp32"} if to_image or to_fp32 else signature
    filter_unit = 1 if to_image else UNIT
    flags = {} if from_images else {"NORM": norm, "TO_IMAGE": to_image}
    return Variant(
        name=f"convolution_{name}_fp16",
        kernel=_from_images_kernel if from_images else _convolution_kernel,
        signature=signature,
        constexprs={
            **flags,
            "CHANNEL_UNIT": UNIT,
            "FILTER_UNIT": filter_unit,
            "IN_FP32": False,
            "BLOCK_M": tile.pixels,
            "BLOCK_N": tile.filters,
            "BLOCK_K": tile.channels,
        },
        # The bias may be any part of a longer vector.
        aligned=tuple(name for name in signature if name.endswith("_ptr") and name != "bias_ptr"),
        grid=(
            (("filter_units",), tile.filters // filter_unit),
            (("out_height", "out_width"), tile.pixels),
            (("batch",), 1),
        ),
        max_registers=max_registers,
        num_warps=tile.warps,
        num_stages=tile.stages,
        sms=NORM_SMS if norm else SMS,
    )


VARIANTS: tuple[Variant, ...] = (
    _variant("128x128", TILES["128x128"], 200),
    _variant("128x64", TILES["128x64"], 208),
    _variant("64x64", TILES["64x64"], 128),
    _variant("norm_128x128", NORM_TILES["128x128"], 200, norm=True),
    _variant("norm_128x64", NORM_TILES["128x64"], 128, norm=True),
    _variant("norm_64x64", NORM_TILES["64x64"], 168, norm=True),
    _variant("from_images", FROM_IMAGES_TILE, 128, from_images=True),
    _variant("to_fp32", TILES["64x64"], 128, to_fp32=True),
    _variant("to_image", TO_IMAGE_TILE, 128, to_image=True),
)

"""Which convolution cubin is launched, with what; and that every shape here fits what the cubins say they take."""

import re
from typing import Any

import pytest

from saishiki.runtime.backends.convolution_kernel import (
    Images,
    Norm,
    Operands,
    convolution_launch,
    from_images_launch,
    matmul_launch,
    to_image_launch,
)
from saishiki.runtime.backends.convolution_tiles import NORM_TILES, TILES, ConvolutionShape, choose_tile
from saishiki.runtime.backends.cubins import find_cubin, grid_of, packed_arguments, read_cubin_index
from saishiki.runtime.errors import BackendError

H200, RTX_4090 = 132, 128
AT = Operands(x=256, w=512, bias=768, out=1024)
NORM = Norm(statistics=2048, weight=4096, bias=8192, groups=32, silu=True)


@pytest.mark.parametrize(
    ("stride", "padding", "out"),
    [
        (1, (1, 1, 1, 1), (64, 48)),
        (2, (1, 1, 1, 1), (32, 24)),
        (2, (0, 0, 1, 1), (32, 24)),
        (2, (0, 0, 0, 0), (31, 23)),
        (1, (0, 2, 1, 3), (63, 51)),
    ],
    ids=str,
)
def test_shape_of_the_output(stride: int, padding: tuple[int, int, int, int], out: tuple[int, int]) -> None:
    shape = ConvolutionShape(1, 64, 48, 8, 8, (3, 3), stride, padding)
    assert (shape.out_height, shape.out_width) == out


# AnimeDiffusion at 256 px, batch 1, then SD2.1 at 512 px, batch 2: side, channels, filters, taps.
LAYERS = [
    (1, 256, 64, 64, 3, "128x64"),
    (1, 128, 128, 128, 3, "128x128"),
    (1, 64, 256, 256, 3, "128x64"),
    (1, 32, 512, 512, 3, "64x64"),
    (1, 32, 512, 1536, 1, "128x128"),
    (2, 64, 320, 320, 3, "64x64"),
    (2, 8, 1280, 1280, 3, "64x64"),
    (1, 512, 128, 128, 3, "128x128"),
]


@pytest.mark.parametrize(("batch", "side", "channels", "filters", "taps", "tile"), LAYERS, ids=str)
def test_choose_tile_of_real_layers(batch: int, side: int, channels: int, filters: int, taps: int, tile: str) -> None:
    padding = (taps // 2,) * 4
    shape = ConvolutionShape(batch, side, side, channels, filters, (taps, taps), 1, padding)
    assert choose_tile(shape, sms=H200) == tile


def test_choose_tile_fills_a_gpu_before_it_takes_the_largest() -> None:
    shape = ConvolutionShape(1, 32, 32, 512, 512)
    assert choose_tile(shape, sms=32) == "128x128"
    assert choose_tile(shape, sms=64) == "128x64"
    assert choose_tile(shape, sms=RTX_4090) == "64x64"


def test_tokens_are_a_picture_of_one_column() -> None:
    shape = ConvolutionShape(1, 4096, 1, 640, 2560, (1, 1), 1, (0, 0, 0, 0))
    assert choose_tile(shape, sms=H200) == "128x128"
    assert TILES["128x128"].blocks(shape) == 32 * 20


def checked_grid(name: str, arguments: dict[str, int], target: str) -> tuple[int, ...]:
    entry = find_cubin(read_cubin_index(), name, target)
    packed_arguments(entry, arguments)
    return grid_of(entry, arguments)


@pytest.mark.parametrize("norm", [None, NORM], ids=["plain", "norm"])
@pytest.mark.parametrize("sms", [1, 20, RTX_4090])
@pytest.mark.parametrize("target", ["sm80", "sm89"])
def test_convolution_launch_is_what_a_cubin_takes(target: str, sms: int, norm: Norm | None) -> None:
    shape = ConvolutionShape(2, 30, 22, 96, 136, (3, 3), 2, (0, 0, 1, 1))
    name, arguments = convolution_launch(
        shape, Operands(256, 512, 770, 1024, 1280, bias_rows=2, bias_stride=136, norm=norm), sms=sms
    )
    tile = (NORM_TILES if norm else TILES)[choose_tile(shape, sms=sms)]
    grid = checked_grid(name, arguments, target)
    assert grid == (-(-136 // tile.filters), -(-15 * 11 // tile.pixels), 2)
    assert grid[0] * grid[1] * grid[2] == tile.blocks(shape)
    entry = find_cubin(read_cubin_index(), name, target)
    blocks = {"BLOCK_M": tile.pixels, "BLOCK_N": tile.filters, "BLOCK_K": tile.channels}
    assert entry.constexprs.items() >= (blocks | {"NORM": norm is not None, "TO_IMAGE": False}).items()
    assert entry.threads == 32 * tile.warps


def test_arguments_of_a_convolution() -> None:
    shape = ConvolutionShape(2, 30, 22, 96, 136, (3, 2), 2, (0, 1, 1, 0))
    _, arguments = convolution_launch(
        shape, Operands(256, 512, 770, 1024, 1280, 104, 144, 152, 2, 500, NORM), sms=RTX_4090
    )
    sizes = {"batch": 2, "height": 30, "width": 22, "channel_units": 12, "filter_units": 17}
    assert arguments == {
        **{"x_ptr": 256, "w_ptr": 512, "bias_ptr": 770, "out_ptr": 1024, "residual_ptr": 1280},
        **{"statistics_ptr": 2048, "norm_weight_ptr": 4096, "norm_bias_ptr": 8192, "groups": 32, "silu": 1},
        **sizes,
        **{"out_height": 15, "out_width": 11, "taps_r": 3, "taps_s": 2, "stride": 2, "pad_top": 0, "pad_left": 1},
        **{"x_units": 13, "out_units": 18, "residual_units": 19, "bias_rows": 2, "bias_stride": 500, "has_residual": 1},
    }
    _, plain = convolution_launch(shape, AT, sms=RTX_4090)
    assert {plain[name] for name in ("residual_ptr", "has_residual", "bias_stride", "statistics_ptr", "silu")} == {0}
    assert (plain["x_units"], plain["out_units"], plain["residual_units"], plain["bias_rows"]) == (12, 17, 17, 1)


def test_a_bias_of_nothing_has_no_rows() -> None:
    _, arguments = convolution_launch(ConvolutionShape(1, 8, 8, 8, 8), Operands(256, 512, 0, 1024), sms=H200)
    assert (arguments["bias_ptr"], arguments["bias_rows"]) == (0, 0)


@pytest.mark.parametrize("target", ["sm90", "sm120"])
def test_a_norm_is_not_compiled_where_it_stays_by_itself(target: str) -> None:
    name, arguments = convolution_launch(ConvolutionShape(1, 8, 8, 64, 64), Operands(0, 0, 0, 0, norm=NORM), sms=H200)
    with pytest.raises(BackendError, match=f"is compiled for sm80, sm86, sm89, not for this GPU's {target}"):
        checked_grid(name, arguments, target)


@pytest.mark.parametrize("to_fp32", [False, True])
def test_a_linear_layer_is_a_picture_of_one_column(to_fp32: bool) -> None:
    at = Operands(256, 512, 768, 1024, x_stride=960)
    name, arguments = matmul_launch(8192, 320, 2560, at, sms=H200, to_fp32=to_fp32)
    assert name == ("convolution_to_fp32_fp16" if to_fp32 else "convolution_128x128_fp16")
    assert checked_grid(name, arguments, "sm90") == ((40, 128, 1) if to_fp32 else (20, 64, 1))
    sizes = ("batch", "height", "width", "channel_units", "filter_units", "taps_r", "taps_s", "x_units", "out_units")
    assert [arguments[name] for name in sizes] == [1, 8192, 1, 40, 320, 1, 1, 120, 320]


@pytest.mark.parametrize("target", ["sm80", "sm86", "sm89", "sm90", "sm120"])
def test_border_launches_are_what_cubins_take(target: str) -> None:
    shape = ConvolutionShape(2, 30, 22, 8, 136)
    images = Images(x=256, channels=3, x2=512, channels2=4)
    name, arguments = from_images_launch(shape, images, w=768, bias=1024, out=1280, residual=1536)
    assert checked_grid(name, arguments, target) == (3, 6, 2)
    assert (arguments["residual_ptr"], arguments["has_residual"]) == (1536, 1)
    assert (arguments["x_ptr"], arguments["x2_ptr"], arguments["channels_x"], arguments["channels_x2"]) == (
        256,
        512,
        3,
        4,
    )
    name, arguments = to_image_launch(ConvolutionShape(2, 30, 22, 64, 3), AT)
    assert checked_grid(name, arguments, target) == (1, 6, 2)
    assert (arguments["filter_units"], arguments["channel_units"]) == (3, 8)


def test_one_image_is_passed_twice() -> None:
    _, arguments = from_images_launch(ConvolutionShape(1, 8, 8, 8, 64), Images(256, 4), w=0, bias=0, out=0)
    assert (arguments["x2_ptr"], arguments["channels_x2"], arguments["has_residual"]) == (256, 0, 0)


BAD_SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"batch": 0}, "expected sizes and stride from 1"),
    "no taps": ({"taps": (0, 3)}, "expected sizes and stride from 1"),
    "stride 0": ({"stride": 0}, "expected sizes and stride from 1"),
    "padding below 0": ({"padding": (0, 0, 0, -1)}, "padding from 0"),
    "too small an image": ({"height": 2, "padding": (0, 0, 0, 0)}, "smaller than the (3, 3) weights"),
    "too large an image": (
        {"height": 2**20, "width": 2**10},
        "at most 2147483647 numbers in the image, got 8589934592",
    ),
    "too large an output": ({"filters": 2**26}, "at most 2147483647 numbers in the output, got 4294967296"),
    "too many weights": ({"filters": 2**25, "taps": (3, 3), "stride": 8}, "numbers in the weights, got 2415919104"),
}


@pytest.mark.parametrize(("change", "message"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_shape_refuses(change: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"batch": 1, "height": 8, "width": 8, "channels": 8, "filters": 8}
    ConvolutionShape(**sizes)
    with pytest.raises(ValueError, match=re.escape(message)):
        ConvolutionShape(**{**sizes, **change})


def test_launches_refuse() -> None:
    with pytest.raises(
        ValueError, match="expected channels in multiples of 8, got 12; pad image and weights with zeros"
    ):
        convolution_launch(ConvolutionShape(1, 8, 8, 12, 8), AT, sms=H200)
    with pytest.raises(ValueError, match="expected filters in multiples of 8, got 3"):
        convolution_launch(ConvolutionShape(1, 8, 8, 8, 3), AT, sms=H200)
    with pytest.raises(ValueError, match="is dense, without residual and norm; launch them by themselves"):
        to_image_launch(ConvolutionShape(1, 8, 8, 8, 3), Operands(0, 0, 0, 0, residual=256))
    with pytest.raises(ValueError, match="has no norm in front; launch it by itself"):
        convolution_launch(ConvolutionShape(1, 8, 8, 8, 8), Operands(0, 0, 0, 0, norm=NORM), sms=H200, to_fp32=True)
    with pytest.raises(ValueError, match="expected as many rows of bias as divide the 4 images, got 3"):
        convolution_launch(ConvolutionShape(4, 8, 8, 8, 8), Operands(0, 0, 0, 0, bias_rows=3), sms=H200)
    with pytest.raises(ValueError, match="expected x_stride in multiples of 8 from 16, got 12"):
        convolution_launch(ConvolutionShape(1, 8, 8, 16, 8), Operands(0, 0, 0, 0, x_stride=12), sms=H200)
    with pytest.raises(ValueError, match="expected out_stride in multiples of 8 from 16, got 8"):
        convolution_launch(ConvolutionShape(1, 8, 8, 8, 16), Operands(0, 0, 0, 0, out_stride=8), sms=H200)
    with pytest.raises(ValueError, match="at most 2147483647 numbers from one residual to the next, got 2147483648"):
        matmul_launch(2**20, 8, 8, Operands(0, 0, 0, 0, 256, residual_stride=2**11), sms=H200)
    with pytest.raises(ValueError, match="no less than the images' 9, got 8"):
        from_images_launch(ConvolutionShape(1, 8, 8, 8, 8), Images(0, 5, 0, 4), w=0, bias=0, out=0)
    with pytest.raises(ValueError, match="expected weights of 8 or 16 channels"):
        from_images_launch(ConvolutionShape(1, 8, 8, 24, 8), Images(0, 5), w=0, bias=0, out=0)

"""Our Triton convolutions on one shape of each level, in every tile: plain, with sums, with the norm in the prologue.

Rows: ``what`` is ``triton convolution``; ``layer``, ``height``, ``variant``, ``tile``, error, times, ``tflops``, and
``sums_error`` where sums are taken. Sums are added to and must be zeroed; that launch is not timed.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

from battery.clock import relative_error, synchronize
from battery.network import prepare_inference
from battery.part import Options, Row

from executor_window.conv3x3 import TILES, TINY_TILE, Tile, conv3x3
from executor_window.convs import Check
from executor_window.cudnn_convs import first_line
from executor_window.layers import animediffusion_layers, four_shapes
from executor_window.operands import (
    PROLOGUE,
    RESIDUAL_BIAS,
    SUMS,
    Operands,
    Variant,
    conv_reference,
    draw_operands,
    sums_reference,
)

WHAT = "triton convolution"
SUMS_BUDGET = 1e-3


def measure(options: Options) -> Iterator[Row]:
    """In a dry run in Triton's interpreter, one shape on one tile."""
    prepare_inference(options)
    for conv in four_shapes(animediffusion_layers(options))[: 1 if options.dry_run else None]:
        sets = draw_operands(conv, options.device, 1 if options.dry_run else 10)
        for variant in (RESIDUAL_BIAS, SUMS, PROLOGUE):
            check = Check(conv, variant, sets, options)
            labels = {"what": WHAT, "layer": conv.name, "height": conv.height, "variant": variant.name}
            for tile in (TINY_TILE,) if options.dry_run else TILES:
                try:
                    row = check.row([run_of(operands, variant, tile) for operands in sets])
                    row |= checked_sums(sets[0], variant, tile, options) if variant.sums else {}
                    yield {**labels, "tile": asdict(tile), **row}
                except Exception as error:  # one tile that does not compile must not hide the others
                    yield {**labels, "tile": asdict(tile), "unavailable": first_line(error)}


def run_of(operands: Operands, variant: Variant, tile: Tile) -> Callable[[], None]:
    """A launch on a set."""
    return partial(
        conv3x3,
        operands.x,
        operands.w,
        operands.bias,
        operands.y,
        tile=tile,
        residual=operands.residual if variant.residual else None,
        scale=operands.scale if variant.prologue else None,
        shift=operands.shift if variant.prologue else None,
        sums=operands.sums if variant.sums else None,
    )


def checked_sums(operands: Operands, variant: Variant, tile: Tile, options: Options) -> Row:
    """Of a run on zeros."""
    operands.sums.zero_()
    run_of(operands, variant, tile)()
    synchronize(options)
    error = relative_error(operands.sums, sums_reference(conv_reference(operands, variant)))
    row = {"sums_error": error, "sums_budget": SUMS_BUDGET}
    return row if error <= SUMS_BUDGET else {**row, "red": True}

"""cuDNN's run-time engines: sums in the epilogue, the norm and SiLU in the prologue, on one shape of each level.

Worth it where the fused convolution takes less than the precompiled one and the pass it saves: ``sums`` saves reading
the image for the statistics, the prologue saves reading and writing it to apply them. Three candidates each, as they
come; compiling one takes up to seconds.

Rows: ``what`` is ``fused convolution``; ``layer``, ``height``, ``variant``, ``plan``, ``build_s``, error, times, and
for sums ``sums_error`` and ``accumulates`` (whether a second run adds to the first's sums, which then need zeroing).
The precompiled ``residual + bias`` is the row to compare with.
"""

import time
from collections.abc import Iterator

from battery.clock import relative_error, synchronize
from battery.network import prepare_inference
from battery.part import Options, Row

from executor_window.convs import Check, runs_of
from executor_window.cudnn_convs import ConvGraph, Session, first_line, open_session, plan_conv
from executor_window.layers import Conv, animediffusion_layers, four_shapes
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

WHAT = "fused convolution"
CANDIDATES = 3
SUMS_BUDGET = 1e-3


def measure(options: Options) -> Iterator[Row]:
    """Skipped where cuDNN's graph API is not there."""
    prepare_inference(options)
    session = open_session(options)
    for conv in four_shapes(animediffusion_layers(options)):
        sets = draw_operands(conv.padded, options.device)
        for variant in (RESIDUAL_BIAS, SUMS, PROLOGUE):
            labels = {"what": WHAT, "layer": conv.name, "height": conv.height, "variant": variant.name}
            try:
                yield from ({**labels, **row} for row in variant_rows(session, conv, variant, sets, options))
            except Exception as error:  # cuDNN refuses by exceptions of its own
                yield {**labels, "unavailable": first_line(error)}


def variant_rows(
    session: Session, conv: Conv, variant: Variant, sets: list[Operands], options: Options
) -> Iterator[Row]:
    """Up to three candidates; of the precompiled variant the first choice."""
    precompiled = variant == RESIDUAL_BIAS
    graph = plan_conv(session, conv.padded, variant, precompiled=precompiled)
    check, wanted = Check(conv, variant, sets, options), 1 if precompiled else CANDIDATES
    for index in range(graph.candidates):
        start = time.perf_counter()
        if not graph.build(index, options.device):
            yield {"plan": graph.name(index), "unavailable": graph.last_failure}
            continue
        build = {} if options.dry_run else {"build_s": round(time.perf_counter() - start, 3)}
        sums = checked_sums(graph, index, sets[0], options) if variant.sums else {}
        times = {} if sums.get("red") else check.row(runs_of(graph, sets, index))
        yield {"plan": graph.name(index), **build, **times, **sums}
        wanted -= 1
        if not wanted:
            return


def checked_sums(graph: ConvGraph, index: int, operands: Operands, options: Options) -> Row:
    """The sums of one run on zeros, and whether a second adds to them."""
    run, truth = graph.run_with(operands, index), sums_reference(conv_reference(operands, graph.variant))
    operands.sums.zero_()
    run()
    synchronize(options)
    once = operands.sums.clone()
    run()
    synchronize(options)
    error = relative_error(once, truth)
    again = relative_error(operands.sums, 2 * truth)
    row = {"sums_error": error, "sums_budget": SUMS_BUDGET, "accumulates": again <= SUMS_BUDGET}
    return row if error <= SUMS_BUDGET else {**row, "red": True}

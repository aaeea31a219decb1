"""Each convolution of the network by cuDNN: its first choice, then the best of all candidates; plain against fused.

A layer's own variant is ``bias``, or ``residual + bias`` where the network adds to the result; ``plain`` shows what
that costs. The candidates are the precompiled engines, each glanced at in a CUDA graph of ten launches; the first
choice and the best are then timed in earnest. torch's own convolution stands beside them, and alone where cuDNN's graph
API is not there; it is labelled, and does not count as cuDNN.

Rows: ``what`` is ``convolution``; ``layer``, ``flops``, ``count`` (in the network), ``variant``, ``engine`` (``cudnn
first choice``, ``cudnn best`` or ``torch``), ``plan``, ``candidates`` and ``candidates_us`` (null where one cannot be
built), error against fp64 and budget, times and ``tflops``. Layers come in the order of their work, and a run that was
stopped goes on behind the last that is whole (``last``).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from battery.clock import each_us, glance_us, relative_error, synchronize
from battery.network import prepare_inference
from battery.part import Options, Row, SkippedError

from executor_window.cudnn_convs import ConvGraph, Session, first_line, open_session, plan_conv
from executor_window.layers import Conv, Layers, animediffusion_layers, by_worth
from executor_window.operands import (
    BIAS,
    PLAIN,
    RESIDUAL_BIAS,
    Operands,
    Variant,
    budget_of,
    conv_reference,
    draw_operands,
)

WHAT = "convolution"
FIRST, BEST, TORCH = "cudnn first choice", "cudnn best", "torch"


def measure(options: Options) -> Iterator[Row]:
    """Why cuDNN is not there, or its version; then the layers."""
    prepare_inference(options)
    layers = animediffusion_layers(options)
    session: Session | None = None
    try:
        session = open_session(options)
        cudnn: Row = versions(session)
    except SkippedError as error:
        cudnn = {"unavailable": str(error)}
    if not options.earlier:
        yield {"what": "network", **summary(layers)}
        yield {"what": "cudnn", **cudnn}
    known = {row.get("layer") for row in options.earlier if row.get("last")}
    for conv in by_worth(layers):
        if conv.name not in known:
            rows = list(layer_rows(conv, layers.convs[conv], session, options))
            # A layer is left out of a run that goes on only if all of its rows are there.
            yield from rows[:-1]
            yield {**rows[-1], "last": True}


def summary(layers: Layers) -> Row:
    """What the sums of the other rows are over."""
    return {
        "convolutions": sum(layers.convs.values()),
        "distinct": len(layers.convs),
        "norms": sum(layers.norms.values()),
        "other_launches": sum(layers.others.values()),
        "gflop": round(sum(conv.flops * count for conv, count in layers.convs.items()) / 1e9, 3),
    }


def versions(session: Session) -> Row:
    """Of cuDNN and of its frontend."""
    return {"cudnn": session.cudnn.backend_version_string(), "frontend": session.cudnn.__version__}


def layer_rows(conv: Conv, count: int, session: Session | None, options: Options) -> Iterator[Row]:
    """Both variants of a layer; a failure is a row."""
    sets = draw_operands(conv.padded, options.device)
    for variant in (RESIDUAL_BIAS if conv.residual else BIAS, PLAIN):
        labels = {
            "what": WHAT,
            "layer": conv.name,
            "height": conv.height,
            "kernel": conv.kernel,
            "flops": conv.flops,
            "count": count,
            "variant": variant.name,
        }
        check = Check(conv, variant, sets, options)
        if session is not None:
            try:
                yield from ({**labels, **row} for row in cudnn_rows(session, check))
            except Exception as error:  # cuDNN refuses by exceptions of its own
                yield {**labels, "engine": FIRST, "unavailable": first_line(error)}
        yield {**labels, "engine": TORCH, **check.row(torch_runs(sets, variant))}


class Check:
    """A layer's operands and truth; gives rows, without times where the error is over the budget."""

    def __init__(self, conv: Conv, variant: Variant, sets: Sequence[Operands], options: Options) -> None:
        self.conv, self.variant, self.sets, self.options = conv, variant, sets, options
        self._truth = conv_reference(sets[0], variant)
        self._budget = budget_of(sets[0], variant, self._truth)

    def row(self, runs: Sequence[Callable[[], Any]]) -> Row:
        """Of launches on the sets: the first is checked, all are timed. A result that is not returned is in y."""
        self.sets[0].y.fill_(float("nan"))
        out = runs[0]()
        synchronize(self.options)
        error = relative_error(self.sets[0].y if out is None else out, self._truth)
        row = {"error": error, "budget": self._budget}
        if not error <= self._budget:
            return {**row, "red": True}
        times = each_us(runs, self.options)
        rate = {"tflops": round(self.conv.flops / times["p50_us"] / 1e6, 1)} if times else {}
        return {**row, **times, **rate}


def cudnn_rows(session: Session, check: Check) -> Iterator[Row]:
    """The first choice as soon as it is timed, then the best of all."""
    graph = plan_conv(session, check.conv.padded, check.variant, precompiled=True)
    built = graph.built(check.options.device)
    first = next(built, None)
    if first is None:
        raise RuntimeError(f"none of {graph.candidates} candidates can be built: {graph.last_failure}")
    yield {"engine": FIRST, "plan": graph.name(first), **check.row(runs_of(graph, check.sets, first))}
    glances = {first: glance(graph, check, first)} | {index: glance(graph, check, index) for index in built}
    best = min(glances, key=lambda index: (glances[index] is None, glances[index] or 0.0))
    found = {"candidates": graph.candidates, "candidates_us": [glances.get(i) for i in range(graph.candidates)]}
    yield {"engine": BEST, "plan": graph.name(best), **found, **check.row(runs_of(graph, check.sets, best))}


def glance(graph: ConvGraph, check: Check, index: int) -> float | None:
    """Microseconds of a candidate; None where it fails, or in a dry run."""
    try:
        us = glance_us(runs_of(graph, check.sets, index), check.options)
    except RuntimeError:
        return None
    return None if us is None else round(us, 3)


def runs_of(graph: ConvGraph, sets: Sequence[Operands], index: int) -> list[Callable[[], None]]:
    """A launch on each set."""
    return [graph.run_with(operands, index) for operands in sets]


def torch_runs(sets: Sequence[Operands], variant: Variant) -> list[Callable[[], Any]]:
    """torch's convolution in channels_last, and its additions in launches of their own."""
    return [partial(conv_reference, operands, variant, torch.float16) for operands in sets]

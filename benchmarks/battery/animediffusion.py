"""AnimeDiffusion in torch: a step in eager, the whole loop as one CUDA graph, and torch.compile."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from battery.clock import captured, row_of
from battery.network import build_network, exact, prepare_inference
from battery.part import Options, Row
from battery.plan_images import beside

LAYOUTS = ((True, True), (True, False), (False, True), (False, False))
"""Half, channels_last; the one that counts first."""
BUDGETS = {False: 1e-3, True: 3e-2}


def _layouts(options: Options) -> Iterator[tuple[bool, bool]]:
    # torch in fp16 on a CPU is neither right nor bearable.
    return (layout for layout in LAYOUTS if not (layout[0] and options.dry_run))


def _labels(half: bool, channels_last: bool) -> Row:
    return {"precision": "fp16" if half else "fp32", "layout": "channels_last" if channels_last else "contiguous"}


def eager(options: Options) -> Iterator[Row]:
    """One step of AnimeDiffusion in torch eager."""
    prepare_inference(options)
    truth, _ = exact(options)
    network = build_network(options, half=False, channels_last=False)
    with FlopCounterMode(display=False) as counter:
        network.predict()
    flops = counter.get_total_flops()
    yield {"what": "work of a step", "gflop": round(flops / 1e9, 2)}
    for half, channels_last in _layouts(options):
        network = build_network(options, half=half, channels_last=channels_last)
        row = row_of(network.predict, truth, BUDGETS[half], options, what="step", **_labels(half, channels_last))
        rate = {"tflops": round(flops / row["p50_ms"] / 1e9, 1)} if "p50_ms" in row else {}
        yield {**row, **rate}


def graph(options: Options) -> Iterator[Row]:
    """The whole loop with our sampler kernel: as one CUDA graph with our norms; with torch's also launched singly."""
    prepare_inference(options)
    _, truth = exact(options)
    half, channels_last = next(_layouts(options))
    ours = build_network(options, half=half, channels_last=channels_last, our_norms=True)
    labels = {"steps": options.steps, **_labels(half, channels_last)}
    run = captured(ours.sample, options)
    yield row_of(run, truth, BUDGETS[half], options, what="loop, one graph, our norms", **labels)
    for half, channels_last in _layouts(options):
        network = build_network(options, half=half, channels_last=channels_last)
        labels = {"steps": options.steps, **_labels(half, channels_last)}
        run = captured(network.sample, options)
        yield row_of(run, truth, BUDGETS[half], options, what="loop, one graph", **labels)
        yield row_of(network.sample, truth, BUDGETS[half], options, what="loop, launched", **labels)


def compiled(options: Options) -> Iterator[Row]:
    """torch.compile, the rival to beat: max-autotune inside one graph of the whole loop, and with its own graphs.

    At last our engine in the same process, with the ratio. A dry run traces but compiles nothing.
    """
    prepare_inference(options)
    truth, image = exact(options)
    half = not options.dry_run
    labels, budget = {"steps": options.steps, **_labels(half, True)}, BUDGETS[half]
    network = build_network(options, half=half, channels_last=True)
    ours = replace(network, denoiser=_compile(network.denoiser, "max-autotune-no-cudagraphs", options))
    yield row_of(ours.predict, truth, budget, options, what="step, compiled without graphs", **labels)
    loop = row_of(captured(ours.sample, options), image, budget, options, what="loop, compiled, one graph", **labels)
    yield loop
    own = replace(network, denoiser=_compile(network.denoiser, "max-autotune", options))
    yield row_of(lambda: own.predict().clone(), truth, budget, options, what="step, compiled, its own graph", **labels)
    yield from beside(loop.get("p50_ms"), options)


def _compile(denoiser: object, mode: str, options: Options) -> object:
    if options.dry_run:
        return torch.compile(denoiser, backend="eager")  # type: ignore[call-overload]
    return torch.compile(denoiser, mode=mode)  # type: ignore[call-overload]

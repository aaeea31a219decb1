"""The roofline of a module's graph as plain data: floors, layers, what they took, and what other GPUs could do.

``floor_percent`` is the floor over the time taken: 100 would be as fast as this machine's copies and matrix products.
A layer above that by more than the spread of the profiled runs is counted, since the ceilings are then none. Floors are
sums over layers, each bound by the one thing it needs most, with the fused floor of :mod:`graph_roofline.layers` and,
for comparison, without any fusing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from roofline import GPUS, Roofline, Work, roofline_on

from graph_roofline.ceilings import MeasuredCeilings, floor_of
from graph_roofline.layers import Layer, layers_of
from graph_roofline.node_work import graph_works, total
from graph_roofline.onnxruntime_times import CPU, OTHER, LayerTimes, layer_times
from graph_roofline.sized_graph import SizedGraph, sized_graph, sized_model
from saishiki.runtime.bench.summary import summarize
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Precision

FARTHEST = 10
PROJECTION = "projection from the vendor's peaks; nothing was measured on this GPU"
NO_LAYER_TIMES = "the CUDA provider's profiler times launches; the part layers of gpu_battery.py waits for each kernel"

Row = dict[str, Any]
Floor = Callable[[Work], Roofline]


@dataclass(frozen=True)
class Counted:
    """A graph and its layers at given sizes, and a model that runs it."""

    model: Any
    graph: SizedGraph
    layers: tuple[Layer, ...]


def counted(bundle: Bundle, module: str, precision: Precision, sizes: Mapping[str, int]) -> Counted:
    """A module of a bundle, counted. Raises ``ValueError`` for an operator or a shape that cannot be counted."""
    path = bundle.file(bundle.module(module).graphs[precision].graph)
    model = sized_model(path, sizes)
    graph = sized_graph(model)
    return Counted(model, graph, layers_of(graph))


def profiled(
    bundle: Bundle, module: str, precision: Precision, what: Counted, *, runs: int, provider: str = CPU
) -> LayerTimes:
    """The layers' times in ONNX Runtime, on random inputs."""
    rng = np.random.default_rng(0)
    feeds = {tensor.name: rng.standard_normal(tensor.shape, dtype=np.float32) for tensor in what.graph.inputs}
    folder = bundle.file(bundle.module(module).graphs[precision].graph).parent
    return layer_times(what.model, folder, what.layers, feeds, runs=runs, provider=provider)


def work_report(what: Counted) -> Row:
    """Operations and bytes of the whole graph."""
    fused, plain = total([layer.work for layer in what.layers]), total(graph_works(what.graph))
    return {
        "matrix_gflop": round(fused.matrix_flops / 1e9, 4),
        "vector_gflop": round(fused.vector_flops / 1e9, 4),
        "fused_mb": round(fused.nbytes / 1e6, 3),
        "unfused_mb": round(plain.nbytes / 1e6, 3),
        "layers": len(what.layers),
    }


def floors_report(what: Counted, floor: Floor) -> Row:
    """Milliseconds: the fused floor, and that of a runtime that fuses nothing."""
    return {
        "floor_ms": round(sum(floor(layer.work).us for layer in what.layers) / 1e3, 5),
        "unfused_floor_ms": round(sum(floor(work).us for work in graph_works(what.graph)) / 1e3, 5),
    }


def ceilings_report(ceilings: MeasuredCeilings) -> Row:
    """Both ceilings: the largest copy, and the fastest product and its name; then all that were measured."""
    largest = max(ceilings.copies)
    return {
        "copy_gb_per_s": round(ceilings.copies[largest] / 1e9, 2),
        "matrix_product_gflop_per_s": round(ceilings.matrix_flops / 1e9, 1),
        "fastest_product": ceilings.fastest_product,
        "copies_gb_per_s": {f"{size / 1e6:.4g} MB": round(rate / 1e9, 2) for size, rate in ceilings.copies.items()},
        "products_gflop_per_s": {name: round(rate / 1e9, 1) for name, rate in ceilings.products.items()},
    }


def layer_rows(layers: Sequence[Layer], floor: Floor, times: LayerTimes | None) -> list[Row]:
    """One row per layer; without times, of floors alone."""
    rows = []
    for layer in layers:
        least = floor(layer.work)
        row = {
            "layer": layer.name,
            "op": layer.op,
            "kernel": list(layer.kernel),
            "shape": list(layer.shape),
            "ops": list(layer.ops),
            "gflop": round((layer.work.matrix_flops + layer.work.vector_flops) / 1e9, 5),
            "mb": round(layer.work.nbytes / 1e6, 4),
            "floor_us": round(least.us, 2),
            "bound": least.bound,
        }
        if times is not None:
            taken = times.layers.get(layer.name, 0.0)
            row |= {"us": round(taken, 1), "floor_percent": round(100 * least.us / taken, 1) if taken else None}
        rows.append(row)
    return rows


def farthest(rows: Sequence[Row]) -> list[str]:
    """The layers that lose most time to their floor, the worst first."""
    timed = [row for row in rows if "us" in row]
    return [row["layer"] for row in sorted(timed, key=lambda row: row["floor_us"] - row["us"])[:FARTHEST]]


def profile_report(times: LayerTimes, rows: Sequence[Row]) -> Row:
    """What the profiled runs took in all, and which layers are farthest from their floor, or beyond it."""
    runs = summarize(times.run_us)
    return {
        "farthest": farthest(rows),
        "below_floor": [row["layer"] for row in rows if (row["floor_percent"] or 0) > 100 * (1 + runs.spread)],
        "profiled_run_ms": round(runs.p50_ms / 1e3, 3),
        "profiled_spread": round(runs.spread, 4),
        "kernels_ms": round(sum(times.layers.values()) / 1e3, 3),
        "other_ms": round(times.layers.get(OTHER, 0.0) / 1e3, 3),
    }


def projections(what: Counted, steps: int) -> list[Row]:
    """The floors of known GPUs, per call and for all steps of an image."""
    rows = []
    for gpu in GPUS:
        floors = floors_report(what, lambda work, gpu=gpu: roofline_on(gpu, work))  # type: ignore[misc]
        image = {f"image_{name}": round(steps * value, 4) for name, value in floors.items()}
        rows.append({"gpu": gpu.name, "kind": PROJECTION, "peaks": gpu.source, **floors, "steps": steps, **image})
    return rows


def roofline_report(
    bundle: Bundle, sizes: Mapping[str, int], device: str, ceilings: MeasuredCeilings, *, steps: int, runs: int
) -> Row:
    """The denoiser's roofline on this machine, and projections of its fp16 graph.

    Args:
        device: ``cpu`` with layers' times of the fp32 graph, or ``cuda`` with floors of the fp16 graph alone.
        steps: of an image.
        runs: of the profile.
    """
    precision: Precision = "fp32" if device == "cpu" else "fp16"
    what = counted(bundle, "denoiser", precision, sizes)
    times = profiled(bundle, "denoiser", precision, what, runs=runs) if device == "cpu" else None

    def floor(work: Work) -> Roofline:
        return floor_of(work, ceilings)

    rows = layer_rows(what.layers, floor, times)
    return {
        "module": "denoiser",
        "precision": precision,
        "sizes": dict(sizes),
        **work_report(what),
        "ceilings": ceilings_report(ceilings),
        **floors_report(what, floor),
        **(profile_report(times, rows) if times else {"no_layer_times": NO_LAYER_TIMES}),
        "layer_rows": rows,
        "projections": projections(counted(bundle, "denoiser", "fp16", sizes), steps),
    }

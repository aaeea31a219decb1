"""One row per case: first the op's test at that very shape, then its speed and its rivals'; no speed without the test.

The test is that of ``tests/kernels``: the error against fp64 is at most twice that of plain torch at the same dtype,
plus a floor. Rivals that compute the same must pass it, too. Targets are judged on replayed graphs, which spares eager
torch its launches: the harder comparison.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gpu_clock import Ceilings, GpuClock, Run, launches_of
from roofline import Roofline, Work, roofline

from kernel_bench.cases import AttentionCase, GroupNormCase, KernelCase, SamplerCase, details_of
from kernel_bench.trials import COPY, Place, Rival, Tensors, Trial, trial_of

FLOOR = 1e-6
BATCH_64 = 64
# More than twice the L2 cache of any GPU here, so that no launch finds the last one's bytes there.
STREAMED_BYTES = 200 << 20

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where to measure, and by what; a dry run has neither clock nor ceilings."""

    place: Place
    clock: GpuClock | None
    ceilings: Ceilings | None

    @property
    def row(self) -> Row:
        """What all rows were measured against."""
        if self.ceilings is None:
            return {}
        copy, product = self.ceilings.bandwidth / 1e9, self.ceilings.matrix_flops / 1e12
        return {"copy_gb_per_s": round(copy, 1), "fp16_tflops": round(product, 1), "l2": "flushed before every run"}


def open_bench(*, dry_run: bool) -> Bench:
    """The GPU with its ceilings, measured now; for a dry run the GPU or the CPU."""
    place = Place("cuda" if torch.cuda.is_available() else "cpu", dry_run)
    if dry_run:
        return Bench(place, None, None)
    clock = GpuClock()
    return Bench(place, clock, clock.ceilings())


def checked(outputs: Tensors, plain: Tensors, truth: Tensors) -> Row:
    """Error and budget of the output that is nearest to being red, and whether it is; a NaN is."""
    rows = [_checked_one(*each) for each in zip(outputs, plain, truth, strict=True)]
    return max(rows, key=lambda row: (row["red"], row["error"] / row["budget"]))


def _checked_one(out: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor) -> Row:
    if not truth.numel():
        return {"error": 0.0, "budget": FLOOR, "red": False}
    scale = max(1.0, truth.abs().max().item())
    budget = 2 * (plain.double() - truth).abs().max().item() + FLOOR * scale
    error = (out.double() - truth).abs().max().item()
    return {"error": error, "budget": budget, "red": not error <= budget}


def measured_row(case: KernelCase, trial: Trial, bench: Bench, rivals: Row | None = None) -> Row:
    """The row of a case; without a clock, everything but the times. Rivals that are known are not tried again."""
    clock, ceilings = bench.clock, bench.ceilings
    plain, truth = trial.plain(), trial.truth()
    row = {"op": case.op, "case": case.name, **details_of(case), **checked(trial.outputs(), plain, truth)}
    if row["red"]:
        return row
    row |= timed(trial.run, clock)
    if clock and ceilings:
        row |= achieved(trial.work, row["p50_us"], ceilings)
    row["rivals"] = rivals or {name: rival_row(rival, plain, truth, clock) for name, rival in trial.rivals.items()}
    row["targets"] = targets_of(case, trial.work, row)
    return row


def timed(run: Run, clock: GpuClock | None) -> Row:
    """Times as a graph and as launched from Python, and the number of launches; nothing but a run without a clock."""
    if clock is None:
        run()
        return {}
    return {
        **clock.replayed(run),
        "launched_p50_us": clock.launched(run)["p50_us"],
        "launches": launches_of(run),
    }


def achieved(work: Work, p50_us: float, ceilings: Ceilings) -> Row:
    """Rates, and the percentage of what the GPU did in a copy and in a matrix product."""
    least = ceiling_of(work, ceilings)
    return {
        "gb_per_s": round(work.nbytes / p50_us / 1e3, 1),
        "tflops": round((work.matrix_flops + work.vector_flops) / p50_us / 1e6, 2),
        "bound": least.bound,
        "ceiling_percent": round(100 * least.us / p50_us, 1),
    }


def ceiling_of(work: Work, ceilings: Ceilings) -> Roofline:
    """The least time by what was measured; operations outside the tensor cores have no measured ceiling."""
    return roofline(work, matrix_flops=ceilings.matrix_flops, vector_flops=math.inf, bandwidth=ceilings.bandwidth)


def rival_row(rival: Rival, plain: Tensors, truth: Tensors, clock: GpuClock | None) -> Row:
    """A rival's times, or why there are none."""
    try:
        out = rival.run()
        if rival.same:
            verdict = checked(out if isinstance(out, tuple) else (out,), plain, truth)
            if verdict["red"]:
                return verdict
        return timed(rival.run, clock)
    except RuntimeError as error:  # SDPA's backends refuse what they do not support
        return {"unavailable": str(error).splitlines()[0]}


def targets_of(case: KernelCase, work: Work, row: Row) -> list[Row]:
    """What was asked of the op in this case, and whether it holds; None where it was not measured."""
    if isinstance(case, AttentionCase) and not case.merge_scale and case.sort:
        return _attention_targets(row)
    if isinstance(case, SamplerCase):
        if case.shape[0] >= BATCH_64:
            return [_at_least("share of copy bandwidth", 0.85, _share(row))]
        return [_at_most("launches", 1, row.get("launches"))]
    if isinstance(case, GroupNormCase) and work.nbytes >= STREAMED_BYTES:
        return [_at_least("share of copy bandwidth", 0.85, _share(row))]
    return []


def _attention_targets(row: Row) -> list[Row]:
    own = row.get("p50_us")
    plain = _best(row["rivals"], "plain, one region")
    eager, compiled = (_best(row["rivals"], f"two passes, {how}") for how in ("eager", "compiled"))
    return [
        _at_most("time over plain attention to one region", 1.15, _quotient(own, plain)),
        _at_least("two passes eager over time", 2.0, _quotient(eager, own)),
        _at_least("two passes compiled over time", 1.3, _quotient(compiled, own)),
    ]


def _best(rivals: Mapping[str, Row], start: str) -> float | None:
    times = [row["p50_us"] for name, row in rivals.items() if name.startswith(start) and "p50_us" in row]
    return min(times, default=None)


def _share(row: Row) -> float | None:
    """Of the faster of two copies: the large one, and that of as many bytes, some of which stay in the cache."""
    if "ceiling_percent" not in row:
        return None
    copy = row["rivals"].get(COPY, {}).get("p50_us", math.inf)
    return min(row["ceiling_percent"] / 100, round(copy / row["p50_us"], 3))


def _quotient(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else round(a / b, 3)


def _at_least(what: str, bound: float, value: float | None) -> Row:
    return {"what": what, "wanted": f">= {bound}", "value": value, "met": None if value is None else value >= bound}


def _at_most(what: str, bound: float, value: float | None) -> Row:
    return {"what": what, "wanted": f"<= {bound}", "value": value, "met": None if value is None else value <= bound}


def measured_rows(cases: Iterable[KernelCase], bench: Bench) -> Iterator[Row]:
    """Rows as they come; a case that fails is red, and hides no other.

    Rivals do the same work whatever the mask, so they are tried with the first mask of a shape alone.
    """
    rivals: dict[str, Row] = {}
    for case in cases:
        shape = f"{case.op}, {case.shape_name}"
        try:
            with torch.inference_mode():
                row = measured_row(case, trial_of(case, bench.place), bench, rivals.get(shape))
            rivals.setdefault(shape, row.get("rivals", {}))
        except Exception as error:
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            row = {"op": case.op, "case": case.name, "red": True, "failed": message}
        yield row


def red_rows(rows: Sequence[Row]) -> list[str]:
    """Every case whose test was red."""
    return [f"{row['op']}, {row['case']}" for row in rows if row["red"]]

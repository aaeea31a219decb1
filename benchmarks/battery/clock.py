"""Latencies with their raw samples, by CUDA events; in a dry run everything is run and nothing is timed.

``latency`` times each run alone, as a caller sees it. ``each_us`` times a CUDA graph of many launches back to back and
divides: the time of one launch among others, its gap included, which is what a plan of static launches is the sum of.
Warm-up ends when the medians of two windows of ten runs agree within 2 %, or after ``MAX_WARMUP`` runs; ``stable`` says
which. What is slow is warmed up and timed less often, ``SECONDS`` for each, but never less than two windows and one. A
dry run has no times, so that none can be taken for a measurement.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import gpu_clock
import torch

from battery.part import Options, Row

WINDOW, MAX_WARMUP, AGREEMENT = 10, 200, 0.02
RUNS = 100
SECONDS = 4.0

Run = Callable[[], Any]


def percentiles(samples: Sequence[float], unit: str = "ms", digits: int = 4) -> Row:
    """p50, p90 and p99, n and the samples."""
    ordered = sorted(samples)
    at = {f"p{q}_{unit}": round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)], digits) for q in (50, 90, 99)}
    return {**at, "n": len(ordered), f"samples_{unit}": [round(sample, digits) for sample in samples]}


def warmed_up(once: Callable[[], float], limit: int = MAX_WARMUP) -> Row:
    """Calls ``once``, which returns milliseconds, until two windows agree: how often, and whether they did."""
    before = statistics.median(once() for _ in range(WINDOW))
    limit = fitting(before, limit, at_least=2 * WINDOW)
    for runs in range(2 * WINDOW, limit + 1, WINDOW):
        now = statistics.median(once() for _ in range(WINDOW))
        if abs(now - before) <= AGREEMENT * before:
            return {"warmup": runs, "stable": True}
        before = now
    return {"warmup": limit - limit % WINDOW, "stable": False}


def fitting(each_ms: float, runs: int, *, at_least: int = WINDOW) -> int:
    """As many of ``runs`` as fit ``SECONDS``, but ``at_least`` so many."""
    return max(at_least, min(runs, int(1e3 * SECONDS / max(each_ms, 1e-6))))


def latency(run: Run, options: Options, runs: int = RUNS) -> Row:
    """Milliseconds of ``run``, each timed alone; nothing in a dry run, which runs it once."""
    if options.dry_run:
        run()
        return {}
    warmup = warmed_up(lambda: _event_ms(run))
    first = _event_ms(run)
    return {**percentiles([first, *(_event_ms(run) for _ in range(fitting(first, runs) - 1))]), **warmup}


def _event_ms(run: Run) -> float:
    events: Any = torch.cuda.Event
    begin, end = events(enable_timing=True), events(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def wall_latency(run: Run, options: Options) -> Row:
    """Milliseconds by the wall clock: what a caller sees, copies from and to the host included."""
    if options.dry_run:
        run()
        return {}
    samples: list[float] = []
    while len(samples) < 40 and sum(samples) < 60e3:
        start = time.perf_counter()
        run()
        samples.append((time.perf_counter() - start) * 1e3)
    return {**percentiles(samples[len(samples) // 4 :]), "warmup": len(samples) // 4}


def each_us(launches: Sequence[Run], options: Options, runs: int = 30) -> Row:
    """Microseconds of one of ``launches``, all of them back to back in one CUDA graph; nothing in a dry run."""
    row = latency(captured(lambda: [launch() for launch in launches], options), options, runs)
    if not row:
        return {}
    samples = [1e3 * sample / len(launches) for sample in row["samples_ms"]]
    kept = {name: row[name] for name in ("warmup", "stable")}
    return {**percentiles(samples, "us", 3), "launches_timed_together": len(launches), **kept}


def glance_us(launches: Sequence[Run], options: Options, runs: int = 5) -> float | None:
    """The median of a few replays of such a graph, to choose among many candidates; None in a dry run."""
    replay = captured(lambda: [launch() for launch in launches], options)
    if options.dry_run:
        replay()
        return None
    replay()
    return 1e3 * statistics.median(_event_ms(replay) for _ in range(runs)) / len(launches)


def captured(run: Run, options: Options) -> Run:
    """``run`` as one CUDA graph; in a dry run, ``run`` itself."""
    if options.dry_run:
        return run
    return gpu_clock.captured(run)


def synchronize(options: Options) -> None:
    """Waits for the GPU, where there is one."""
    if not options.dry_run:
        torch.cuda.synchronize()


def relative_error(out: Any, truth: Any) -> float:
    """``|out - truth| / |truth|`` in fp64."""
    return float((out.double() - truth.double()).norm() / truth.double().norm())


def row_of(run: Run, truth: Any, budget: float, options: Options, **labels: Any) -> Row:
    """Latency and error of what ``run`` returns against ``truth``; no times where the error is too large.

    ``first_s`` is the first run by the wall clock, compilation included.
    """
    start = time.perf_counter()
    out = run()
    synchronize(options)
    first_s = {} if options.dry_run else {"first_s": round(time.perf_counter() - start, 3)}
    error = relative_error(out, truth)
    row = {**labels, "error": error, "budget": budget, **first_s}
    if not error <= budget:  # NaN too
        return {**row, "red": True}
    return {**row, **latency(run, options)}

"""Measuring: warm up until the medians stand still, then sample; every sample is kept.

A run is a function that does its work once and returns what it measured itself, so that the host's clock and a device's
events are sampled alike. The clock here only limits how long a measurement may take.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

from saishiki.runtime.bench.summary import median

T = TypeVar("T")
Seconds = Callable[[], float]


@dataclass(frozen=True)
class Effort:
    """How long to warm up and to measure.

    A window of the warm-up is ``window_runs`` runs, or as many as fit in ``window_s``, at least one. The warm-up ends
    when the medians of its last two windows agree within ``tolerance``, at ``most_windows``, or after ``warmup_s``.
    Then runs are sampled until there are ``most_runs``, or ``least_runs`` and ``measure_s`` have passed.
    """

    window_runs: int
    window_s: float
    tolerance: float
    most_windows: int
    warmup_s: float
    least_runs: int
    most_runs: int
    measure_s: float


@dataclass(frozen=True)
class Warmup:
    """How the warm-up went: its runs, how far its last two windows' medians lay apart, and whether that was enough.

    ``change`` is None where there was time for one window only.
    """

    runs: int
    change: float | None
    tolerance: float
    stable: bool


@dataclass(frozen=True)
class Collected(Generic[T]):
    """The samples of a measurement, in order, and how it was warmed up."""

    warmup: Warmup
    samples: tuple[T, ...]


def collect(
    run: Callable[[], T], effort: Effort, *, ms_of: Callable[[T], float], clock: Seconds = perf_counter
) -> Collected[T]:
    """Warms up and samples ``run``; ``ms_of`` reads a sample's time."""
    warmup = _warm_up(lambda: ms_of(run()), effort, clock)
    samples: list[T] = []
    begin = clock()
    while len(samples) < effort.most_runs:
        if len(samples) >= effort.least_runs and clock() - begin >= effort.measure_s:
            break
        samples.append(run())
    return Collected(warmup, tuple(samples))


def collect_ms(run: Callable[[], float], effort: Effort, *, clock: Seconds = perf_counter) -> Collected[float]:
    """:func:`collect` for a run that returns its time in milliseconds."""
    return collect(run, effort, ms_of=lambda ms: ms, clock=clock)


def timed(work: Callable[[], object], clock: Seconds = perf_counter) -> Callable[[], float]:
    """A run of ``work`` by the host's clock, in milliseconds."""

    def run() -> float:
        begin = clock()
        work()
        return (clock() - begin) * 1e3

    return run


def _warm_up(run: Callable[[], float], effort: Effort, clock: Seconds) -> Warmup:
    begin, runs, change = clock(), 0, None
    medians: list[float] = []
    while len(medians) < effort.most_windows:
        window = _window(run, effort, clock)
        runs += len(window)
        medians.append(median(window))
        if len(medians) > 1:
            change = abs(medians[-1] / medians[-2] - 1) if medians[-2] > 0 else 0.0
            if change <= effort.tolerance:
                break
        if clock() - begin >= effort.warmup_s:
            break
    return Warmup(runs, change, effort.tolerance, change is not None and change <= effort.tolerance)


def _window(run: Callable[[], float], effort: Effort, clock: Seconds) -> list[float]:
    begin, samples = clock(), [run()]
    while len(samples) < effort.window_runs and clock() - begin < effort.window_s:
        samples.append(run())
    return samples

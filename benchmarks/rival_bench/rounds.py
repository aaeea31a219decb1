"""Times of several systems by turns: in every round each runs once, in an order that is drawn anew.

So what a busy neighbour or a falling clock costs is shared by all, and nobody always runs after the same other. Rounds
warm up until the systems stand still: a window is ``WINDOW`` rounds, and every system's median over the last window
must lie within ``TOLERANCE`` of that over the window before. The warm-up ends without that after ``seconds``; the
result says for each system whether it stood still. Before each run the machine rests for ``REST_S``: threads of some
runtimes spin for a while after their work, and would take the cores from whoever runs next.

Where one round takes minutes, time counts for more than rounds: none begins after ``limit_s``, however few there were.
"""

import itertools
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from saishiki.runtime.bench.measure import Warmup
from saishiki.runtime.bench.summary import median

WINDOW = 3
TOLERANCE = 0.05
REST_S = 0.02

Seconds = Callable[[], float]
TimedRun = Callable[[], float]  # returns milliseconds


@dataclass(frozen=True)
class Effort:
    """How long to measure one subject.

    Rounds are timed until there are ``most_rounds``, or ``least_rounds`` and ``seconds`` have passed; the warm-up may
    take ``seconds``, too. After the first, no round begins once ``limit_s`` have passed.
    """

    least_rounds: int
    most_rounds: int
    seconds: float
    limit_s: float = math.inf

    def most_s(self, round_s: float) -> float:
        """The longest that warm-up and rounds can take where a round takes ``round_s``."""
        timed_s = max(self.seconds, self.least_rounds * round_s)
        return self.seconds + round_s + min(timed_s, self.limit_s) + round_s


@dataclass(frozen=True)
class Samples:
    """Of one system, in milliseconds, in the order of the rounds."""

    warmup: Warmup
    samples_ms: tuple[float, ...]


def interleaved(
    runs: Mapping[str, TimedRun], effort: Effort, *, clock: Seconds = time.perf_counter, seed: int = 0
) -> dict[str, Samples]:
    """The samples of each of some timed runs, by name; none for no runs."""
    if not runs:
        return {}
    order = random.Random(seed)
    warmups = _warm_up(runs, effort, clock, order)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    begin = clock()
    for count in range(effort.most_rounds):
        enough = effort.seconds if count >= effort.least_rounds else effort.limit_s
        if count > 0 and clock() - begin >= enough:
            break
        _round(runs, samples, order)
    return {name: Samples(warmups[name], tuple(values)) for name, values in samples.items()}


def _round(runs: Mapping[str, TimedRun], samples: Mapping[str, list[float]], order: random.Random) -> None:
    for name in order.sample(list(runs), len(runs)):
        time.sleep(REST_S)
        samples[name].append(runs[name]())


def _warm_up(runs: Mapping[str, TimedRun], effort: Effort, clock: Seconds, order: random.Random) -> dict[str, Warmup]:
    samples: dict[str, list[float]] = {name: [] for name in runs}
    begin = clock()
    for count in itertools.count(1):
        _round(runs, samples, order)
        warmups = {name: _judged(values) for name, values in samples.items()}
        still = count % WINDOW == 0 and all(warmup.stable for warmup in warmups.values())
        if still or clock() - begin >= effort.seconds:
            break
    return warmups


def _judged(samples: list[float]) -> Warmup:
    if len(samples) < 2 * WINDOW:
        return Warmup(len(samples), None, TOLERANCE, stable=False)
    before, last = median(samples[-2 * WINDOW : -WINDOW]), median(samples[-WINDOW:])
    change = abs(last / before - 1)
    return Warmup(len(samples), change, TOLERANCE, stable=change <= TOLERANCE)


def wall_clock(run: Callable[[], Any]) -> TimedRun:
    """``run`` by the host's clock; for what is done when the call returns."""

    def timed() -> float:
        begin = time.perf_counter()
        run()
        return (time.perf_counter() - begin) * 1e3

    return timed


def cuda_events(run: Callable[[], Any]) -> TimedRun:
    """``run`` by two events on torch's stream, launches included; the device is idle when it begins."""
    import torch

    events: Any = torch.cuda.Event

    def timed() -> float:
        begin, end = events(enable_timing=True), events(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    return timed

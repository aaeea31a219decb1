"""A row of ``saishiki bench`` as a benchmark of pytest-benchmark: the same samples, told by a clock that replays them.

The warm-up criterion, the device's events and the split of an image into steps and host are ``saishiki bench``'s own.
So pytest-benchmark measures nothing here; it keeps, prints and compares what was measured.
"""

from collections.abc import Callable
from typing import Any

from saishiki.runtime.bench.schema import Row

_now_s = 0.0


def replayed_time() -> float:
    """Seconds: the timer of benchmarks whose samples are replayed, for ``pytest.mark.benchmark(timer=...)``."""
    return _now_s


def replay(benchmark: Any, row: Row, **more: Any) -> None:
    """Gives a benchmark with that timer the samples of a row, and what it says of them, with ``more`` beside it."""
    benchmark.extra_info |= {"clock": row.clock, "sizes": dict(row.sizes), **_warmup(row), **more}
    benchmark.extra_info |= {name: getattr(row.summary, name) for name in ("p50_ms", "p90_ms", "p99_ms", "spread")}
    if row.images_per_s is not None:
        benchmark.extra_info["images_per_s"] = row.images_per_s
    benchmark.pedantic(_player(row.samples_ms), rounds=len(row.samples_ms), iterations=1)


def _warmup(row: Row) -> dict[str, Any]:
    return {} if row.warmup is None else {"warmup_runs": row.warmup.runs, "warmup_stable": row.warmup.stable}


def _player(samples_ms: tuple[float, ...]) -> Callable[[], None]:
    """Lets the next sample's time pass at each call."""
    waiting = iter(samples_ms)

    def play() -> None:
        global _now_s
        # The difference of clocks may come out below nothing, which no timer can.
        _now_s += max(next(waiting), 0.0) / 1e3

    return play

"""Images per second: in batches within the bundle's profiles, and for several callers of one colorizer."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from saishiki.runtime.bench.images import Task, row_of
from saishiki.runtime.bench.measure import Seconds, collect_ms, timed
from saishiki.runtime.bench.plan import Plan
from saishiki.runtime.bench.schema import Row
from saishiki.runtime.colorizer import Colorizer
from saishiki.runtime.signature import Profile, Sizes


def batch_rows(colorizer: Colorizer, task: Task, plan: Plan) -> tuple[Row, ...]:
    """A row per batch above 1 that a profile holds; one image alone is the row ``image``."""
    batches = batches_of(colorizer.manifest.profiles, task.sizes())
    return tuple(_batch_row(colorizer, task, batch, plan) for batch in batches)


def _batch_row(colorizer: Colorizer, task: Task, batch: int, plan: Plan) -> Row:
    collected = collect_ms(timed(partial(task, colorizer, batch)), plan.image)
    samples = list(collected.samples)
    rate = batch * len(samples) / sum(samples) * 1e3
    return row_of("batch", task.sizes(batch=batch), samples, warmup=collected.warmup, images_per_s=rate)


def batches_of(profiles: tuple[Profile, ...], sizes: Sizes) -> tuple[int, ...]:
    """The powers of two above 1, and the largest batch, that some profile holds at the other sizes."""
    others = {symbol: size for symbol, size in sizes.items() if symbol != "batch"}
    fitting = [profile for profile in profiles if profile.holds(others)]
    largest = max((profile.max["batch"] for profile in fitting), default=1)
    wanted = {1 << k for k in range(1, largest.bit_length())} | {largest}
    return tuple(b for b in sorted(wanted) if b > 1 and any(profile.holds({"batch": b}) for profile in fitting))


def caller_rows(colorizer: Colorizer, task: Task, plan: Plan) -> tuple[Row, ...]:
    """A row per number of callers above 1: each call's latency, and the images per second of all together."""
    return tuple(_caller_row(colorizer, task, callers, plan) for callers in plan.callers)


def _caller_row(colorizer: Colorizer, task: Task, callers: int, plan: Plan) -> Row:
    calls = call_at_once(partial(task, colorizer), callers=callers, runs=plan.runs_per_caller, seconds=plan.callers_s)
    rate = len(calls.samples_ms) / calls.seconds
    return row_of("callers", task.sizes(callers=callers), list(calls.samples_ms), images_per_s=rate)


@dataclass(frozen=True)
class Calls:
    """Every call's latency, caller by caller, and the time from the common start to the last one's end."""

    samples_ms: tuple[float, ...]
    seconds: float


def call_at_once(
    work: Callable[[], object], *, callers: int, runs: int, seconds: float, clock: Seconds = perf_counter
) -> Calls:
    """Threads that start together and call ``work`` so many times each; the first error of any is raised.

    After ``seconds`` nobody begins another call, but everybody has made one.
    """
    began: list[float] = []
    together = threading.Barrier(callers, action=lambda: began.append(clock()))

    def call() -> list[float]:
        run = timed(work, clock)
        together.wait()
        samples = [run()]
        while len(samples) < runs and clock() - began[0] < seconds:
            samples.append(run())
        return samples

    with ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(call) for _ in range(callers)]
        samples = tuple(ms for future in futures for ms in future.result())
        return Calls(samples, clock() - began[0])

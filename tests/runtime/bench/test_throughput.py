import threading
from dataclasses import replace

import pytest

from saishiki.runtime.bench.images import task_of
from saishiki.runtime.bench.throughput import batch_rows, batches_of, call_at_once, caller_rows
from saishiki.runtime.colorizer import Colorizer
from saishiki.runtime.signature import Profile

SIZES = {"batch": 1, "height": 32, "width": 32, "steps": 10}


def profile(low, high, *, height=32):
    def point(batch):
        return {"batch": batch, "height": height, "width": 32}

    return Profile(point(low), point(low), point(high))


@pytest.mark.parametrize(
    ("profiles", "batches"),
    [
        ((profile(1, 1),), ()),
        ((profile(1, 2),), (2,)),
        ((profile(1, 6),), (2, 4, 6)),
        ((profile(1, 8),), (2, 4, 8)),
        ((profile(1, 1), profile(4, 8)), (4, 8)),
        ((profile(1, 1), profile(1, 8, height=64)), ()),
    ],
)
def test_batches_of(profiles, batches):
    assert batches_of(profiles, SIZES) == batches


def test_callers_run_at_once_and_every_call_counts():
    at_once, most, lock = 0, 0, threading.Lock()
    everybody = threading.Barrier(3)

    def work():
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        everybody.wait(timeout=20)
        with lock:
            at_once -= 1

    calls = call_at_once(work, callers=3, runs=2, seconds=60)
    assert most == 3
    assert len(calls.samples_ms) == 6
    assert calls.seconds * 1e3 >= max(calls.samples_ms) * 0.5


def test_calls_are_timed_by_the_clock(clock):
    lock = threading.Lock()

    def work():
        with lock:
            clock.pass_ms(10)

    calls = call_at_once(work, callers=1, runs=3, seconds=60, clock=clock)
    assert calls.samples_ms == pytest.approx((10, 10, 10))
    assert calls.seconds == pytest.approx(0.03)


@pytest.mark.parametrize(("seconds", "calls"), [(0, 1), (0.015, 2), (9, 5)])
def test_callers_stop_after_a_time_but_each_calls_once(clock, seconds, calls):
    found = call_at_once(lambda: clock.pass_ms(10), callers=1, runs=5, seconds=seconds, clock=clock)
    assert len(found.samples_ms) == calls


def test_the_error_of_a_caller_is_raised():
    def work():
        raise RuntimeError("engine broken")

    with pytest.raises(RuntimeError, match="engine broken"):
        call_at_once(work, callers=2, runs=1, seconds=60)


@pytest.mark.usefixtures("one_thread")
def test_rows_of_a_real_colorizer(opened, quick):
    task = task_of(opened.manifest, quick)
    with Colorizer.load(opened, backend="onnxruntime") as colorizer:
        (batch,) = batch_rows(colorizer, task, quick)
        (callers,) = caller_rows(colorizer, task, replace(quick, callers=(3,), runs_per_caller=2, callers_s=60))
    assert (batch.subject, batch.sizes) == ("batch", SIZES | {"batch": 2, "steps": 1})
    assert batch.images_per_s == pytest.approx(2e3 * len(batch.samples_ms) / sum(batch.samples_ms))
    assert (callers.sizes["callers"], callers.summary.n) == (3, 6)
    assert callers.images_per_s >= 1e3 / callers.summary.max_ms

import itertools

import pytest
import torch
from battery import clock
from battery.clock import (
    MAX_WARMUP,
    captured,
    each_us,
    fitting,
    glance_us,
    latency,
    percentiles,
    row_of,
    warmed_up,
)
from battery.part import Options

DRY_RUN, GPU = Options(dry_run=True), Options(dry_run=False)


@pytest.fixture
def half_ms(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU whose runs take half a millisecond each; what was run."""
    log: list[str] = []

    def event_ms(run: clock.Run) -> float:
        run()
        return 0.5

    monkeypatch.setattr(clock, "_event_ms", event_ms)
    monkeypatch.setattr(clock, "captured", lambda run, options: run)
    monkeypatch.setattr(clock, "synchronize", lambda options: None)
    return log


def test_percentiles_keep_the_samples_in_their_order() -> None:
    row = percentiles([3.0, 1.0, 2.0, 4.0])
    assert (row["p50_ms"], row["p90_ms"], row["p99_ms"], row["n"]) == (3.0, 4.0, 4.0, 4)
    assert row["samples_ms"] == [3.0, 1.0, 2.0, 4.0]


def test_warmed_up_ends_where_two_windows_agree() -> None:
    times = itertools.chain([9.0] * 10, [5.0] * 10, itertools.repeat(1.0))
    assert warmed_up(lambda: next(times)) == {"warmup": 40, "stable": True}


def test_warmed_up_of_times_that_never_agree_says_so() -> None:
    times = (1.0 + i // 10 for i in itertools.count())
    assert warmed_up(lambda: next(times), limit=65) == {"warmup": 60, "stable": False}
    assert MAX_WARMUP >= 65


@pytest.mark.parametrize(("each_ms", "runs"), [(0.5, 100), (100.0, 40), (1000.0, 10), (0.0, 100)])
def test_fitting_takes_slow_runs_less_often(each_ms: float, runs: int) -> None:
    assert fitting(each_ms, 100) == runs
    assert fitting(1000.0, 200, at_least=20) == 20


def test_latency_runs_once_and_times_nothing_in_a_dry_run() -> None:
    log: list[int] = []
    assert latency(lambda: log.append(1), DRY_RUN) == {}
    assert log == [1]


def test_latency_warms_up_first(half_ms: list[str]) -> None:
    row = latency(lambda: half_ms.append("run"), GPU, runs=17)
    assert (row["p50_ms"], row["n"], row["warmup"], row["stable"]) == (0.5, 17, 20, True)
    assert len(half_ms) == 37


def test_each_us_divides_by_the_launches(half_ms: list[str]) -> None:
    launches = [lambda: half_ms.append("a"), lambda: half_ms.append("b")]
    row = each_us(launches, GPU, runs=10)
    assert (row["p50_us"], row["launches_timed_together"], row["samples_us"]) == (250.0, 2, [250.0] * 10)
    assert half_ms[:4] == ["a", "b", "a", "b"]
    assert glance_us(launches, GPU) == 250.0


def test_each_us_and_glance_us_in_a_dry_run_run_every_launch() -> None:
    log: list[str] = []
    launches = [lambda: log.append("a"), lambda: log.append("b")]
    assert each_us(launches, DRY_RUN) == {}
    assert glance_us(launches, DRY_RUN) is None
    assert log == ["a", "b"] * 2


def test_row_of_a_wrong_result_has_no_times(half_ms: list[str]) -> None:
    row = row_of(lambda: torch.tensor([1.1]), torch.tensor([1.0]), 0.05, GPU, what="w")
    assert (row["what"], row["red"], row["error"]) == ("w", True, pytest.approx(0.1, rel=1e-5))
    assert "p50_ms" not in row


def test_row_of_nan_is_red(half_ms: list[str]) -> None:
    assert row_of(lambda: torch.tensor([float("nan")]), torch.tensor([1.0]), 0.5, GPU)["red"]


def test_row_of_a_right_result_is_timed(half_ms: list[str]) -> None:
    row = row_of(lambda: torch.tensor([1.0]), torch.tensor([1.0]), 0.05, GPU)
    assert (row["error"], row["p50_ms"]) == (0.0, 0.5)


def test_captured_in_a_dry_run_is_the_run_itself() -> None:
    def run() -> None: ...

    assert captured(run, DRY_RUN) is run

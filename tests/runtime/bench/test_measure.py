import pytest

from saishiki.runtime.bench.measure import Effort, collect, collect_ms, timed

EFFORT = Effort(
    window_runs=3,
    window_s=10,
    tolerance=0.05,
    most_windows=4,
    warmup_s=100,
    least_runs=2,
    most_runs=5,
    measure_s=0.25,
)


def test_warm_up_ends_when_two_windows_agree(clock):
    slow, fast = [300.0] * 3, [100.0, 100.0, 101.0]
    result = collect_ms(clock.runs_taking([*slow, *fast, *fast, 50.0]), EFFORT, clock=clock)
    assert (result.warmup.runs, result.warmup.stable) == (9, True)
    assert result.warmup.change == 0
    assert result.samples == (50.0,) * 5


def test_warm_up_takes_the_medians_so_that_one_slow_run_does_not_matter(clock):
    result = collect_ms(clock.runs_taking([100.0, 900.0, 100.0, 102.0, 102.0, 700.0, 1.0]), EFFORT, clock=clock)
    assert result.warmup.runs == 6
    assert result.warmup.change == pytest.approx(0.02)
    assert result.warmup.stable


def test_warm_up_that_never_stands_still_ends_and_says_so(clock):
    growing = [100.0 * 1.1**k for k in range(100)]
    result = collect_ms(clock.runs_taking(growing), EFFORT, clock=clock)
    assert result.warmup.runs == 12
    assert result.warmup.change == pytest.approx(1.1**3 - 1)
    assert not result.warmup.stable


@pytest.mark.parametrize(("warmup_s", "runs", "change"), [(0.5, 3, None), (1.0, 6, 0.0)])
def test_warm_up_ends_when_its_time_is_over(clock, warmup_s, runs, change):
    effort = Effort(**{**vars(EFFORT), "warmup_s": warmup_s, "tolerance": -1.0})
    result = collect_ms(clock.runs_taking([200.0]), effort, clock=clock)
    assert (result.warmup.runs, result.warmup.change, result.warmup.stable) == (runs, change, False)


def test_a_window_of_long_runs_is_one_run(clock):
    effort = Effort(**{**vars(EFFORT), "window_s": 0.1})
    result = collect_ms(clock.runs_taking([500.0]), effort, clock=clock)
    assert (result.warmup.runs, result.warmup.stable) == (2, True)


@pytest.mark.parametrize(("run_ms", "samples"), [(1.0, 5), (100.0, 3), (1000.0, 2)])
def test_samples_keep_within_the_time_and_the_numbers(clock, run_ms, samples):
    assert collect_ms(clock.runs_taking([run_ms]), EFFORT, clock=clock).samples == (run_ms,) * samples


def test_collect_keeps_what_a_run_returns(clock):
    result = collect(lambda: ("a", clock.pass_ms(2.0)), EFFORT, ms_of=lambda sample: sample[1], clock=clock)
    assert set(result.samples) == {("a", 2.0)}


def test_an_error_of_a_run_ends_the_measurement(clock):
    def fail():
        raise RuntimeError("engine broken")

    with pytest.raises(RuntimeError, match="engine broken"):
        collect_ms(fail, EFFORT, clock=clock)


def test_timed_reads_the_clock_around_the_work(clock):
    assert timed(lambda: clock.pass_ms(12.5), clock)() == pytest.approx(12.5)

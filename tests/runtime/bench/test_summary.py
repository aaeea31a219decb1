import pytest

from saishiki.runtime.bench.summary import LEAST_SPREAD, median, percentile, shared_spread, summarize


@pytest.mark.parametrize(
    ("q", "n", "rank"),
    [
        (50, 1, 1),
        (50, 4, 2),
        (50, 5, 3),
        (90, 10, 9),
        (90, 9, 9),
        (99, 99, 99),
        (99, 100, 99),
        (99, 200, 198),
        (100, 7, 7),
    ],
)
def test_percentile_is_the_sample_of_its_rank(q, n, rank):
    assert percentile([float(k) for k in range(n, 0, -1)], q) == rank


@pytest.mark.parametrize(("samples", "q"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_of_nothing(samples, q):
    with pytest.raises(ValueError, match="expected samples and a percentage"):
        percentile(samples, q)


def test_summarize():
    summary = summarize([float(k) for k in range(1, 101)])
    assert (summary.n, summary.p50_ms, summary.p90_ms, summary.p99_ms) == (100, 50, 90, 99)
    assert (summary.min_ms, summary.max_ms) == (1, 100)
    assert summary.spread == pytest.approx(0.8)
    assert median([3.0, 1.0, 2.0]) == 2


def test_spread_takes_the_farther_side():
    assert summarize([8.0, *[10.0] * 8, 11.0]).spread == pytest.approx(0.2)
    assert summarize([9.0, *[10.0] * 6, 14.0, 14.0]).spread == pytest.approx(0.4)


def test_spread_of_differences_around_zero_is_no_division_by_zero():
    assert summarize([-1.0, 0.0, 1.0]).spread == 0


def test_shared_spread_adds_up_and_has_a_floor():
    wide, exact = summarize([9.0, 10.0, 11.0]), summarize([10.0, 10.0, 10.0])
    assert shared_spread(wide, wide) == pytest.approx(0.2)
    assert shared_spread(exact, exact) == LEAST_SPREAD

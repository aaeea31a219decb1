import pytest

from saishiki.runtime.bench.drift import drift_of, widened_spread, widening
from saishiki.runtime.bench.summary import summarize

Z = 1.2815516
# The 90 % quantiles of Student's t by degrees of freedom, as in any table of it.
STUDENT = {2: 1.8856, 3: 1.6377, 4: 1.5332, 5: 1.4759, 9: 1.3830, 20: 1.3253, 100: 1.2901}


@pytest.mark.parametrize(("freedom", "quantile"), STUDENT.items())
def test_widening_is_students_quantile_over_the_normal_one(freedom, quantile):
    assert widening(freedom + 1) == pytest.approx(quantile / Z, rel=4e-3)


def test_two_samples_say_nothing_of_a_spread():
    assert widened_spread(summarize([10.0, 11.0])) == float("inf")
    assert widened_spread(summarize([10.0])) == 0


def test_few_samples_are_widened():
    assert widened_spread(summarize([9.0, 10.0, 11.0])) == pytest.approx(0.147, abs=1e-3)
    assert widened_spread(summarize([9.0, 9.5, 10.0, 10.5, 11.0] * 40)) == pytest.approx(0.1, abs=1e-3)


def test_drift_sees_what_medians_do_not(made):
    """Both stretches have the same median, but a third of the images came while the machine was slower."""
    assert drift_of(made.runner([300.0] * 20 + [400.0] * 10)) == pytest.approx(1 / 3, rel=0.02)
    assert drift_of(made.runner([300.0] * 30)) == 0


def test_drift_is_not_below_what_two_medians_differ_by(made):
    runner = made.runner([300.0] * 30)
    moved = type(runner.stability)(300.0, 360.0, 0.2, 0.02, agree=False)
    assert drift_of(type(runner)(**{**vars(runner), "stability": moved})) == 0.2

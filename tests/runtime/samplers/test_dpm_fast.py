import numpy as np
import pytest

from saishiki.runtime.samplers import sample_dpm_fast
from saishiki.runtime.samplers.dpm_fast import fast_orders
from tests.runtime.samplers.gaussian import DEVIATION, MEAN, denoise, flow, normal

ENDS = (10.0, 0.02)


def test_fast_orders_add_up():
    assert [fast_orders(n) for n in (1, 2, 3, 4, 5, 6, 7)] == [
        (1,),
        (2,),
        (2, 1),
        (3, 1),
        (3, 2),
        (3, 2, 1),
        (3, 3, 1),
    ]
    assert all(sum(fast_orders(n)) == n for n in range(1, 60))
    with pytest.raises(ValueError, match="expected at least 1 evaluation, got 0"):
        fast_orders(0)


def test_sample_dpm_fast_is_of_third_order():
    errors = []
    for steps in (10, 20):
        x, states = 10 * normal(), []
        sample_dpm_fast(
            denoise, x, ENDS, 3 * steps + 1, noise=None, eta=0.0, on_step=lambda k, x, to=states: to.append(x)
        )
        # The last step is of first order, so it is left out.
        level = ENDS[0] * (ENDS[1] / ENDS[0]) ** (steps / (steps + 1))
        errors.append(np.abs(states[-2] - flow(x, ENDS[0], level)).max())
    assert errors[0] < 0.01
    assert errors[0] / errors[1] > 6


def test_sample_dpm_fast_asks_as_often_as_it_says():
    for evaluations in range(1, 12):
        asked = []
        sample_dpm_fast(
            lambda x, sigma, to=asked: to.append(sigma) or denoise(x, sigma),
            normal(),
            ENDS,
            evaluations,
            noise=normal(12, 2, 3, 2, 2),
        )
        assert len(asked) == evaluations
        assert asked[0] == 10
        assert min(asked) > 0.0199


def test_sample_dpm_fast_keeps_the_distribution():
    shape = (20000, 1, 1, 1)
    x = 10 * normal(*shape, seed=1)
    result = sample_dpm_fast(denoise, x, ENDS, 60, noise=normal(21, *shape, seed=2))
    assert result.mean() == pytest.approx(MEAN, abs=0.03)
    assert result.std() == pytest.approx(DEVIATION, rel=0.06)
    assert abs(np.corrcoef(x.ravel(), result.ravel())[0, 1]) < 0.5


def test_sample_dpm_fast_needs_noise():
    with pytest.raises(ValueError, match=r"expected noise for 2 steps, because eta is 1\.0 and not 0"):
        sample_dpm_fast(denoise, normal(), ENDS, 4, noise=None)

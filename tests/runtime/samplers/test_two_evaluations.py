"""The solvers on distributions whose path is known, and what they refuse; recorded runs are in test_solver.py."""

import numpy as np
import pytest

from saishiki.runtime.samplers import (
    sample_dpm2,
    sample_dpm2_ancestral,
    sample_dpmpp_2s_ancestral,
    sample_dpmpp_sde,
    sample_heun,
)
from tests.runtime.samplers.gaussian import DEVIATION, MEAN, denoise, falling, flow, normal

QUIET = {"noise": None, "eta": 0.0}
SOLVERS = {
    "heun": (sample_heun, {}),
    "dpm2": (sample_dpm2, {}),
    "dpm2 a, eta 0": (sample_dpm2_ancestral, QUIET),
    "2s a, eta 0": (sample_dpmpp_2s_ancestral, QUIET),
    "sde, eta 0": (sample_dpmpp_sde, QUIET),
}
STOCHASTIC = {
    "dpm2 a": (sample_dpm2_ancestral, 1),
    "2s a": (sample_dpmpp_2s_ancestral, 1),
    "sde": (sample_dpmpp_sde, 2),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_is_of_second_order(name):
    sample, options = SOLVERS[name]
    errors = []
    for steps in (40, 80):
        sigmas, x, states = falling(steps), 10 * normal(), []
        sample(denoise, x, sigmas, on_step=lambda k, x, states=states: states.append(x), **options)
        # The last step, to 0, is the same for all step counts, so it is compared apart.
        errors.append(np.abs(states[-2] - flow(x, sigmas[0], sigmas[-2])).max())
    assert errors[0] < 0.1
    assert errors[0] / errors[1] > 3.4


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_asks_twice_but_in_the_last_step(name):
    sample, options = SOLVERS[name]
    sigmas, asked = falling(6), []

    def seen(x, sigma):
        asked.append((sigma, denoise(x, sigma)))
        return asked[-1][1]

    result = sample(seen, 10 * normal(), sigmas, **options)
    assert len(asked) == 11
    np.testing.assert_allclose([sigma for sigma, _ in asked[::2]], sigmas[:-1])
    np.testing.assert_array_equal(result, asked[-1][1])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solver_keeps_the_distribution(name):
    """With new noise in every step, what comes out still has the images' mean and deviation."""
    sample, draws = STOCHASTIC[name]
    sigmas, shape = falling(60), (20000, 1, 1, 1)
    x = sigmas[0] * normal(*shape, seed=1)
    result = sample(denoise, x, sigmas, noise=normal(59 * draws, *shape, seed=2))
    assert result.mean() == pytest.approx(MEAN, abs=0.03)
    assert result.std() == pytest.approx(DEVIATION, rel=0.06)
    assert abs(np.corrcoef(x.ravel(), result.ravel())[0, 1]) < 0.5  # the start is forgotten


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solver_takes_every_noise_once(name):
    sample, draws = STOCHASTIC[name]
    noise, taken = normal(3 * draws, 2, 3, 2, 2), []

    class Noise:
        def __getitem__(self, draw):
            taken.append(draw)
            return noise[draw]

    sample(denoise, 10 * normal(), falling(4), noise=Noise())
    assert taken == list(range(3 * draws))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solver_needs_noise(name):
    sample, _ = STOCHASTIC[name]
    with pytest.raises(ValueError, match="expected noise, because draw 0 adds some of deviation"):
        sample(denoise, normal(), falling(4), noise=None)
    np.testing.assert_allclose(sample(denoise, normal(), [10.0, 0.0], noise=None), denoise(normal(), 10.0))


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_refuses_sigmas(name):
    sample, options = SOLVERS[name]
    with pytest.raises(ValueError, match="expected falling sigmas that end with 0"):
        sample(denoise, normal(), [1.0, 2.0, 0.0], **options)


@pytest.mark.parametrize("name", SOLVERS)
def test_on_step_sees_every_state_and_can_end_a_run(name):
    (sample, options), seen = SOLVERS[name], []

    def on_step(k, x):
        seen.append(k)
        if k == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(denoise, normal(), falling(6), on_step=on_step, **options)
    assert seen == [0, 1, 2]

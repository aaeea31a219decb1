import numpy as np
import pytest

from saishiki.runtime.samplers import sample_lms
from saishiki.runtime.samplers.linear_multistep import multistep_weights
from tests.runtime.samplers.gaussian import denoise, falling, flow, normal


def test_multistep_weights_integrate_polynomials_exactly():
    past, following = [3.0, 4.5, 5.0, 7.0], 1.2
    for degree in range(4):
        weights = multistep_weights(past, following)
        got = sum(weight * level**degree for weight, level in zip(weights, past, strict=True))
        assert got == pytest.approx((following ** (degree + 1) - past[0] ** (degree + 1)) / (degree + 1))


def test_multistep_weights_of_even_steps_are_adams_bashforths():
    np.testing.assert_allclose(multistep_weights([0.0, -1.0, -2.0, -3.0], 1.0), np.array([55, -59, 37, -9]) / 24)
    np.testing.assert_allclose(multistep_weights([0.0, -1.0], 1.0), [1.5, -0.5])
    np.testing.assert_allclose(multistep_weights([2.0], 1.0), [-1.0])


def test_sample_lms_converges_faster_than_second_order():
    errors = []
    for steps in (60, 120):
        sigmas, x, states = falling(steps), 10 * normal(), []
        sample_lms(lambda x, k, s=sigmas: denoise(x, s[k]), x, sigmas, on_step=lambda k, x, to=states: to.append(x))
        errors.append(np.abs(states[-2] - flow(x, sigmas[0], sigmas[-2])).max())
    assert errors[0] < 0.02
    assert errors[0] / errors[1] > 4


def test_sample_lms_keeps_four_slopes():
    """With x0 of 0 the slopes are x / sigma: any order is exact, and x is sigma itself."""
    sigmas = falling(9)
    states = []
    sample_lms(lambda x, k: 0 * x, sigmas[0] * normal(), sigmas, on_step=lambda k, x: states.append(x))
    for x, sigma in zip(states, sigmas[1:], strict=True):
        np.testing.assert_allclose(x, sigma * normal(), atol=1e-12)


def test_sample_lms_refuses_sigmas():
    with pytest.raises(ValueError, match="expected falling sigmas that end with 0"):
        sample_lms(lambda x, k: x, normal(), [1.0, 0.5])

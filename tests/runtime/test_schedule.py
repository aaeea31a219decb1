import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saishiki.runtime.schedule import (
    BUFFERS,
    DiffusionSchedule,
    ddim_schedule,
    ddim_timesteps,
    linear_betas,
    schedule_buffers,
)

PUBLISHED = DiffusionSchedule(schedule_buffers(linear_betas(1000, 1e-6, 1e-2)))


def test_linear_betas_ends_and_scale():
    betas = linear_betas(1000, 1e-6, 1e-2)
    assert betas.dtype == np.float32
    assert (betas[0], betas[-1]) == (np.float32(1e-6), np.float32(1e-2))
    np.testing.assert_allclose(betas, np.linspace(1e-6, 1e-2, 1000), rtol=1e-6)
    np.testing.assert_allclose(linear_betas(250, 1e-6, 1e-2)[[0, -1]], [4e-6, 4e-2], rtol=1e-6)


def test_linear_betas_are_those_of_torch():
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    for timesteps in (1000, 250, 37):
        scale = 1000 / timesteps
        want = torch.linspace(scale * 1e-6, scale * 1e-2, timesteps).numpy()
        np.testing.assert_array_equal(linear_betas(timesteps, 1e-6, 1e-2), want)


def test_schedule_buffers_against_fp64():
    betas = linear_betas(1000, 1e-6, 1e-2)
    buffers = schedule_buffers(betas)
    assert tuple(buffers) == BUFFERS
    assert {(array.dtype, array.shape) for array in buffers.values()} == {(np.dtype(np.float32), (1000,))}
    gammas = np.cumprod(1 - betas.astype(np.float64))
    previous = np.append(1, gammas[:-1])
    late = slice(100, None)  # before, 1 - gamma is cancellation in fp32
    np.testing.assert_allclose(buffers["gammas"], gammas, rtol=2e-6)
    np.testing.assert_allclose(buffers["sqrt_reciprocal_gammas"], gammas**-0.5, rtol=2e-6)
    variance = betas * (1 - previous) / (1 - gammas)
    np.testing.assert_allclose(buffers["posterior_variance"][late], variance[late], rtol=1e-3)
    np.testing.assert_allclose(np.exp(buffers["posterior_log_variance"][late]), variance[late], rtol=1e-3)
    # A posterior mean of x0 = x_t = 1 without noise: the two coefficients in front of the exact fp64 ones.
    np.testing.assert_allclose(
        buffers["posterior_mean_coef1"][late], (betas * previous**0.5 / (1 - gammas))[late], rtol=1e-3
    )
    np.testing.assert_allclose(
        buffers["posterior_mean_coef2"][late], ((1 - previous) * (1 - betas) ** 0.5 / (1 - gammas))[late], rtol=1e-3
    )


def test_posterior_log_variance_is_floored_where_the_variance_is_zero():
    buffers = schedule_buffers(linear_betas(1000, 1e-6, 1e-2))
    assert buffers["posterior_variance"][0] == 0
    assert buffers["posterior_log_variance"][0] == np.log(np.float32(1e-20))


def test_ddim_timesteps_as_published():
    t, previous = ddim_timesteps(1000, 10)
    assert t.tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert previous.tolist() == [801, 701, 601, 501, 401, 301, 201, 101, 1, 0]


def test_ddim_timesteps_that_do_not_divide():
    t, previous = ddim_timesteps(1000, 7)
    assert t.tolist() == [853, 711, 569, 427, 285, 143, 1]
    assert previous.tolist() == [711, 569, 427, 285, 143, 1, 0]


@given(st.data(), st.integers(2, 1500))
def test_ddim_timesteps_descend_to_zero_inside_the_schedule(data, timesteps):
    steps = data.draw(st.integers(1, timesteps - 1))
    t, previous = ddim_timesteps(timesteps, steps)
    assert len(t) == len(previous) == steps
    assert t[0] < timesteps
    assert (t[-1], previous[-1]) == (1, 0)
    assert t[1:].tolist() == previous[:-1].tolist()
    assert (t > previous).all()


@pytest.mark.parametrize("steps", [-1, 0, 1000, 1001])
def test_ddim_timesteps_out_of_range(steps):
    with pytest.raises(ValueError, match=f"steps must be between 1 and 999, got {steps}"):
        ddim_timesteps(1000, steps)


@pytest.mark.parametrize("steps", [2.5, "10", None])
def test_ddim_timesteps_must_be_whole(steps):
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        ddim_timesteps(1000, steps)


def coefficients(tables):
    """The five columns of a DDIM run, (5, S)."""
    return np.stack(
        [tables.signal_level, tables.noise_level, tables.x0_coefficient, tables.eps_coefficient, tables.sigma]
    )


@settings(max_examples=150)
@given(st.integers(1, 999), st.sampled_from([0.0, 0.5, 1.0]))
@example(999, 1.0)
@example(1, 1.0)
@example(10, 1.0)
def test_ddim_coefficients(steps, eta):
    tables = ddim_schedule(PUBLISHED, steps=steps, eta=eta)
    gamma, previous = tables.gamma_t.astype(np.float64), tables.gamma_prev.astype(np.float64)
    radicand = np.float32(1) - tables.gamma_prev - tables.sigma**2
    assert (radicand >= 0).all()
    levels = coefficients(tables)
    assert levels.shape == (5, steps)
    assert levels.dtype == np.float32
    assert np.isfinite(levels).all()
    assert (tables.sigma == 0).all() == (eta == 0)
    # x0 and both kinds of noise keep the variance at one, and so do signal and noise before the step.
    variance = [np.square(column.astype(np.float64)) for column in levels]
    np.testing.assert_allclose(variance[0] + variance[1], 1, atol=1e-6)
    np.testing.assert_allclose(variance[2] + variance[3] + variance[4], 1, atol=1e-6)
    # Within the rounding of 1 - gamma in fp32, sigma is eta times the posterior's deviation.
    exact = eta * np.sqrt((1 - previous) / (1 - gamma) * (1 - gamma / previous))
    np.testing.assert_allclose(tables.sigma, exact, rtol=0.1, atol=1e-6)


def test_ddim_coefficients_at_every_number_of_steps():
    for steps in range(1, 1000):
        assert np.isfinite(coefficients(ddim_schedule(PUBLISHED, steps=steps, eta=1.0))).all(), steps


@pytest.mark.parametrize("eta", [-0.1, 1.01, 2, float("nan"), float("inf")])
def test_ddim_schedule_refuses_eta(eta):
    with pytest.raises(ValueError, match=r"eta must be between 0 \(deterministic\) and 1 \(published default\), got"):
        ddim_schedule(PUBLISHED, steps=10, eta=eta)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saishiki.runtime.samplers import ddim_step, ddpm_step, noise_image, noise_reference, sample_ddim, walk_forward
from saishiki.runtime.schedule import DiffusionSchedule, ddim_schedule, linear_betas, schedule_buffers

SCHEDULE = DiffusionSchedule(schedule_buffers(linear_betas(1000, 1e-6, 1e-2)))
SHAPE = (2, 3, 4, 5)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape or SHAPE, dtype=np.float32)


def denoise(x, k):
    """Any smooth function, of numpy arrays and torch tensors alike."""
    return 0.3 * x + 0.1 * k + x * x * 0.05


def ddim_step_in_fp64(x, eps, t, previous, eta, noise):
    """Song et al., arXiv 2010.02502, eq. 12 with x0 clipped, from the gammas alone."""
    gamma, p = (float(SCHEDULE.gammas[step]) for step in (t, previous))
    sigma = eta * ((1 - p) / (1 - gamma)) ** 0.5 * (1 - gamma / p) ** 0.5
    x0 = np.clip((x.astype(np.float64) - (1 - gamma) ** 0.5 * eps) / gamma**0.5, -1, 1)
    return p**0.5 * x0 + (1 - p - sigma**2) ** 0.5 * eps + sigma * noise


@settings(max_examples=60)
@given(st.sampled_from([1, 7, 10, 50]), st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_ddim_step_against_fp64(steps, eta, data):
    tables = ddim_schedule(SCHEDULE, steps=steps, eta=eta)
    k = data.draw(st.integers(0, steps - 1))
    x, eps, noise = normal(seed=1), normal(seed=2), normal(seed=3)
    got = ddim_step(x, eps, tables, k, noise)
    assert got.dtype == np.float32
    want = ddim_step_in_fp64(x, eps, tables.t[k], tables.t_prev[k], eta, noise)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_ddim_step_does_not_derive_eps_anew_from_the_clipped_x0():
    tables = ddim_schedule(SCHEDULE, steps=10, eta=0.0)
    x, eps = np.full(SHAPE, 50, np.float32), normal()
    want = tables.x0_coefficient[0] + tables.eps_coefficient[0] * eps
    np.testing.assert_allclose(ddim_step(x, eps, tables, 0, None), want, rtol=1e-6)


def test_sample_ddim_runs_every_step_once_and_in_order():
    tables = ddim_schedule(SCHEDULE, steps=7, eta=1.0)
    noise, states, asked = normal(7, *SHAPE, seed=5), [], []

    def predict(x, k):
        asked.append(k)
        return denoise(x, k)

    result = sample_ddim(predict, normal(), tables, noise=noise, on_step=lambda k, x: states.append((k, x)))
    assert asked == [k for k, _ in states] == list(range(7))
    x = normal()
    for k in range(7):
        x = ddim_step_in_fp64(x, denoise(x, k), tables.t[k], tables.t_prev[k], 1.0, noise[k])
        np.testing.assert_allclose(states[k][1], x, atol=1e-4)
    np.testing.assert_array_equal(result, states[-1][1])


def test_sample_ddim_ends_where_on_step_raises():
    def stop(k, x):
        if k == 2:
            raise KeyboardInterrupt

    asked = []
    with pytest.raises(KeyboardInterrupt):
        sample_ddim(
            lambda x, k: asked.append(k) or denoise(x, k),
            normal(),
            ddim_schedule(SCHEDULE, steps=7, eta=0.0),
            noise=None,
            on_step=stop,
        )
    assert asked == [0, 1, 2]


def walk_in_fp64(x0, noise, timesteps):
    gammas = SCHEDULE.gammas.astype(np.float64)
    x, eps, at = x0.astype(np.float64), noise.astype(np.float64), 0
    for t in timesteps:
        if at:
            eps = denoise(x, 0)
            x0 = np.clip((x - np.sqrt(1 - gammas[at]) * eps) / np.sqrt(gammas[at]), -1, 1)
        x, at = np.sqrt(gammas[t]) * x0 + np.sqrt(1 - gammas[t]) * eps, t
    return x


def test_walk_forward_against_fp64():
    tables = ddim_schedule(SCHEDULE, steps=10, eta=1.0)
    calls = []
    x0, noise = np.clip(normal(seed=1), -1, 1), normal(seed=2)
    got = walk_forward(lambda x: calls.append(1) or denoise(x, 0), x0, noise, tables, SCHEDULE.gammas)
    assert len(calls) == 9  # the first iteration takes the given noise
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, walk_in_fp64(x0, noise, range(1, 902, 100)), atol=2e-3)


def test_noise_image_and_noise_reference():
    x0, sketch, noise = normal(seed=1), normal(seed=2), normal(seed=3)
    np.testing.assert_allclose(noise_image(x0, noise, np.float32(0.36)), 0.6 * x0 + 0.8 * noise, atol=1e-6)
    gamma = float(SCHEDULE.gammas[500])
    want = gamma**0.5 * (0.9 * x0 + 0.1 * sketch) + (1 - gamma) ** 0.5 * noise
    np.testing.assert_allclose(noise_reference(x0, sketch, noise, SCHEDULE), want, atol=1e-6)


@pytest.mark.parametrize("t", [999, 500, 1])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddpm_step_against_fp64(t, eta):
    x, eps, noise = normal(seed=1), normal(seed=2), normal(seed=3)
    table = {name: float(values[t]) for name, values in SCHEDULE.buffers.items()}
    x0 = np.clip(table["sqrt_reciprocal_gammas"] * x - table["sqrt_reciprocal_gammas_m1"] * eps.astype(float), -1, 1)
    mean = table["posterior_mean_coef1"] * x0 + table["posterior_mean_coef2"] * x
    want = mean + eta * table["posterior_variance"] ** 0.5 * noise
    np.testing.assert_allclose(ddpm_step(x, eps, SCHEDULE, t, eta=eta, noise=noise), want, atol=1e-5)


def test_ddpm_step_adds_no_noise_at_the_end():
    x, eps = normal(seed=1), normal(seed=2)
    quiet, loud = (ddpm_step(x, eps, SCHEDULE, 0, eta=1.0, noise=scale * normal(seed=3)) for scale in (0, 1))
    np.testing.assert_array_equal(quiet, loud)


def test_numpy_and_torch_agree():
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    tables = ddim_schedule(SCHEDULE, steps=10, eta=1.0)
    arrays = [normal(seed=1), normal(10, *SHAPE, seed=2), np.clip(normal(seed=3), -1, 1)]

    def run(start, noise, image):
        return (
            sample_ddim(denoise, start, tables, noise=noise),
            walk_forward(lambda x: denoise(x, 0), image, start, tables, SCHEDULE.gammas),
            noise_reference(image, image, start, SCHEDULE),
            ddpm_step(start, image, SCHEDULE, 300, eta=1.0, noise=noise[0]),
        )

    for got, want in zip(run(*map(torch.from_numpy, arrays)), run(*arrays), strict=True):
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), want, atol=1e-5)

"""The solvers on distributions whose path is known, and what they refuse; recorded runs are in test_published.py."""

import math

import numpy as np
import pytest

from saishiki.runtime.samplers import (
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m_sde,
    sample_euler,
    sample_euler_ancestral,
)
from tests.runtime.samplers.gaussian import DEVIATION, MEAN, denoise, falling, flow, normal


def denoiser(sigmas):
    """The exact x0 of images that are Gaussian."""
    return lambda x, k: denoise(x, sigmas[k])


SOLVERS = {
    "euler": (sample_euler, {}, 1),
    "euler a, eta 0": (sample_euler_ancestral, {"noise": None, "eta": 0.0}, 1),
    "2m": (sample_dpmpp_2m, {}, 2),
    "2m sde, eta 0": (sample_dpmpp_2m_sde, {"noise": None, "eta": 0.0}, 2),
    "2m sde heun, eta 0": (sample_dpmpp_2m_sde, {"noise": None, "eta": 0.0, "solver": "heun"}, 2),
    "3m sde, eta 0": (sample_dpmpp_3m_sde, {"noise": None, "eta": 0.0}, 2),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_converges_at_its_order(name):
    sample, options, order = SOLVERS[name]
    errors = []
    for steps in (40, 80):
        sigmas = falling(steps)
        x = 10 * normal()
        # The last step, to 0, is the same for all step counts, so it is compared apart.
        states = []
        sample(denoiser(sigmas), x, sigmas, on_step=lambda k, x, states=states: states.append(x), **options)
        errors.append(np.abs(states[-2] - flow(x, sigmas[0], sigmas[-2])).max())
    assert errors[0] < 0.1
    assert errors[0] / errors[1] > 0.85 * 2**order


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_ends_at_x0_exactly(name):
    sample, options, _ = SOLVERS[name]
    sigmas, seen = falling(6), []

    def denoise(x, k):
        seen.append(denoiser(sigmas)(x, k))
        return seen[-1]

    result = sample(denoise, 10 * normal(), sigmas, **options)
    assert len(seen) == 6
    np.testing.assert_allclose(result, seen[-1], atol=1e-14)


STOCHASTIC = {
    "euler a": (sample_euler_ancestral, {}),
    "2m sde": (sample_dpmpp_2m_sde, {}),
    "2m sde heun": (sample_dpmpp_2m_sde, {"solver": "heun"}),
    "3m sde": (sample_dpmpp_3m_sde, {}),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solver_keeps_the_distribution(name):
    """With new noise in every step, what comes out still has the images' mean and deviation."""
    sample, options = STOCHASTIC[name]
    sigmas, shape = falling(60), (20000, 1, 1, 1)
    x = sigmas[0] * normal(*shape, seed=1)
    result = sample(denoiser(sigmas), x, sigmas, noise=normal(59, *shape, seed=2), **options)
    assert result.mean() == pytest.approx(MEAN, abs=0.03)
    assert result.std() == pytest.approx(DEVIATION, rel=0.06)
    assert abs(np.corrcoef(x.ravel(), result.ravel())[0, 1]) < 0.5  # the start is forgotten


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solver_needs_noise(name):
    sample, options = STOCHASTIC[name]
    with pytest.raises(ValueError, match=r"expected noise for 3 steps, because eta is 1\.0 and not 0"):
        sample(denoiser(falling(4)), normal(), falling(4), noise=None, **options)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_single_step_adds_no_noise(name):
    sample, options = STOCHASTIC[name]
    sigmas = [10.0, 0.0]
    result = sample(denoiser(sigmas), normal(), sigmas, noise=None, **options)
    np.testing.assert_allclose(result, denoiser(sigmas)(normal(), 0), atol=1e-14)


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 2.0, 0.0], [1.0, 0.5], [1.0, 0.0, 0.0], [0.0, -1.0]], ids=str)
def test_solver_refuses_sigmas(sigmas):
    for sample, options, _ in SOLVERS.values():
        with pytest.raises(ValueError, match="expected falling sigmas that end with 0, got"):
            sample(lambda x, k: x, normal(), sigmas, **options)


def test_2m_sde_refuses_another_solver():
    with pytest.raises(ValueError, match="expected a solver of midpoint or heun, got 'euler'"):
        sample_dpmpp_2m_sde(lambda x, k: x, normal(), falling(3), noise=None, eta=0.0, solver="euler")


def test_on_step_sees_every_state_and_can_end_a_run():
    seen = []

    def on_step(k, x):
        seen.append(k)
        if k == 2:
            raise KeyboardInterrupt

    for sample, options, _ in SOLVERS.values():
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            sample(denoiser(falling(6)), normal(), falling(6), on_step=on_step, **options)
        assert seen == [0, 1, 2]


def test_dpmpp_2m_is_diffusers_own_in_other_units():
    """diffusers keeps x at variance 1 and starts from plain noise."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'saishiki[export]'")
    import torch

    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    scheduler.set_timesteps(8)
    sigmas = scheduler.sigmas.numpy().astype(np.float64)
    noise = normal().astype(np.float32)
    theirs = torch.from_numpy(noise)
    for k, t in enumerate(scheduler.timesteps):
        scale = 1 / math.sqrt(1 + sigmas[k] ** 2)
        x = theirs.numpy().astype(np.float64) / scale
        eps = (x - denoiser(sigmas)(x, k)) / sigmas[k]
        theirs = scheduler.step(torch.from_numpy(eps.astype(np.float32)), t, theirs).prev_sample
    ours = sample_dpmpp_2m(denoiser(sigmas), noise * math.sqrt(sigmas[0] ** 2 + 1), sigmas)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_numpy_and_torch_agree(name):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    sample, options, _ = SOLVERS[name]
    x = normal().astype(np.float32)
    theirs = sample(denoiser(falling(5).tolist()), torch.from_numpy(x), torch.from_numpy(falling(5)), **options)
    ours = sample(denoiser(falling(5).tolist()), x, falling(5), **options)
    assert theirs.dtype == torch.float32
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)

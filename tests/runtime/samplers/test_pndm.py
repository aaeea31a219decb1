"""PNDM against diffusers' own; the recorded timesteps are in test_solver.py."""

import math

import numpy as np
import pytest

from saishiki.runtime.samplers import Parameterisation, sample_pndm
from saishiki.runtime.samplers.pndm import pndm_schedule, transfer
from tests.runtime.samplers.gaussian import normal

GAMMAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).astype(np.float32)


def network(x, e):
    return np.tanh(0.7 * x + 0.02 * e) - 0.1 * x


def test_pndm_schedule_as_published():
    ahead = [801, 701, 701, 601, 601, 501, 501, 401, 401, 301, 301, 201]
    assert list(pndm_schedule(1000, 5).timesteps) == [*ahead, 201, 1]


@pytest.mark.parametrize("steps", [4, 5, 8, 11, 30])
def test_pndm_schedule_is_diffusers_own(steps):
    scheduler = diffusers_scheduler("eps")
    scheduler.set_timesteps(steps)
    assert list(pndm_schedule(1000, steps).timesteps) == scheduler.timesteps.tolist()


def diffusers_scheduler(prediction):
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'saishiki[export]'")
    kinds = {"eps": "epsilon", "v": "v_prediction"}
    return diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        prediction_type=kinds[prediction],
    )


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("steps", [4, 5, 8, 30], ids="{} steps".format)
def test_sample_pndm_is_diffusers_own(steps, prediction):
    """Of 8 steps, the stride is odd: diffusers' halves do not meet."""
    scheduler = diffusers_scheduler(prediction)
    import torch

    scheduler.set_timesteps(steps)
    x = normal().astype(np.float32)
    theirs = torch.from_numpy(x)
    for e, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(torch.from_numpy(network(theirs.numpy(), e)), int(t), theirs).prev_sample
    schedule = pndm_schedule(1000, steps)
    ours = sample_pndm(network, x, GAMMAS, schedule, Parameterisation(prediction))
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4, rtol=1e-4)
    swapped = Parameterisation("v" if prediction == "eps" else "eps")
    assert np.abs(sample_pndm(network, x, GAMMAS, schedule, swapped) - ours).max() > 0.1


def test_transfer_is_ddims_step():
    """Eq. 9 is DDIM's, without x0 on the way."""
    x, eps, gamma, following = normal(), normal(seed=1), 0.3, 0.6
    x0 = (x - math.sqrt(1 - gamma) * eps) / math.sqrt(gamma)
    want = math.sqrt(following) * x0 + math.sqrt(1 - following) * eps
    np.testing.assert_allclose(transfer(x, eps, gamma, following, Parameterisation("eps")), want, atol=1e-12)


def test_sample_pndm_guides_and_reports_every_step():
    schedule, how, seen = pndm_schedule(1000, 6), Parameterisation("v", (3.0,)), []

    def both(x, e):
        return np.concatenate([network(x, e), network(x, e) - 1])

    guided = sample_pndm(both, normal(), GAMMAS, schedule, how, on_step=lambda k, x: seen.append(k))
    plain = sample_pndm(lambda x, e: network(x, e) + 2, normal(), GAMMAS, schedule, Parameterisation("v"))
    np.testing.assert_allclose(guided, plain, atol=1e-10)
    assert seen == list(range(6))


def test_sample_pndm_refuses_a_clamp():
    with pytest.raises(ValueError, match=r"expected no clamp, because PNDM does not go through x0; got \(-1, 1\)"):
        sample_pndm(network, normal(), GAMMAS, pndm_schedule(1000, 4), Parameterisation("v", clamp=(-1, 1)))


def test_pndm_schedule_refuses_steps():
    with pytest.raises(ValueError, match="expected at least 4 steps of PNDM, got 3"):
        pndm_schedule(1000, 3)
    with pytest.raises(ValueError, match="steps must be between 1 and 999, got 1000"):
        pndm_schedule(1000, 1000)

import math

import numpy as np
import pytest

from saishiki.runtime.samplers import Parameterisation, sample_ddim_gammas

SHAPE = (2, 3, 4, 4)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape or SHAPE).astype(np.float32)


def network(model_input, k):
    return np.tanh(0.7 * model_input + 0.2 * k) - 0.1 * model_input


def diffusers_scheduler(prediction, clip):
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'saishiki[export]'")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=clip,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
    )
    scheduler.set_timesteps(6)
    return scheduler


@pytest.mark.parametrize("clip", [False, True], ids=["free", "clamped"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_sample_ddim_gammas_is_diffusers_own(prediction, eta, clip):
    scheduler = diffusers_scheduler(prediction, clip)
    import torch

    noise, x = normal(6, *SHAPE, seed=1), normal()
    theirs = torch.from_numpy(x)
    for k, t in enumerate(scheduler.timesteps):
        output = torch.from_numpy(network(theirs.numpy(), k))
        theirs = scheduler.step(output, t, theirs, eta=eta, variance_noise=torch.from_numpy(noise[k])).prev_sample
    gammas = [*scheduler.alphas_cumprod[scheduler.timesteps].tolist(), 1.0]
    how = Parameterisation(prediction, clamp=(-1.0, 1.0) if clip else None)
    ours = sample_ddim_gammas(network, x, gammas, how, eta=eta, noise=noise)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4, rtol=1e-4)
    swapped = Parameterisation("v" if prediction == "eps" else "eps", clamp=how.clamp)
    assert np.abs(sample_ddim_gammas(network, x, gammas, swapped, eta=eta, noise=noise) - ours).max() > 0.1


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_keeps_the_distribution(eta):
    """Images that are unit noise stay unit noise: the best v is 0 and the best eps is sqrt(1 - gamma) x."""
    gammas, shape = np.linspace(0.01, 1, 200), (5000, 1, 1, 1)
    x, noise = normal(*shape), normal(199, *shape, seed=1)
    eps = sample_ddim_gammas(
        lambda x, k: math.sqrt(1 - gammas[k]) * x, x, gammas, Parameterisation("eps"), eta=eta, noise=noise
    )
    v = sample_ddim_gammas(lambda x, k: 0 * x, x, gammas, Parameterisation("v"), eta=eta, noise=noise)
    assert eps.std() == pytest.approx(1, rel=0.03)
    np.testing.assert_allclose(eps, v, atol=1e-3)


def test_sample_ddim_gammas_guides():
    def both(model_input, k):
        assert model_input.shape == SHAPE
        c = network(model_input, k)
        return np.concatenate([c, c - 1])

    gammas, how = np.linspace(0.1, 1, 5), Parameterisation("v", guidance=(3.0,))
    guided = sample_ddim_gammas(both, normal(), gammas, how)
    plain = sample_ddim_gammas(lambda x, k: network(x, k) + 2, normal(), gammas, Parameterisation("v"))
    np.testing.assert_allclose(guided, plain, atol=1e-5)


def test_on_step_sees_every_state():
    seen = []
    gammas = np.linspace(0.1, 1, 5)
    result = sample_ddim_gammas(
        network, normal(), gammas, Parameterisation("v"), on_step=lambda k, x: seen.append((k, x))
    )
    assert [k for k, _ in seen] == [0, 1, 2, 3]
    np.testing.assert_array_equal(seen[-1][1], result)


@pytest.mark.parametrize("gammas", [[0.5], [0.5, 0.4], [0.0, 0.5], [0.5, 1.1], [0.5, float("nan")]], ids=str)
def test_sample_ddim_gammas_refuses_gammas(gammas):
    with pytest.raises(ValueError, match="expected rising gammas between 0 and 1, got"):
        sample_ddim_gammas(network, normal(), gammas, Parameterisation("v"))


def test_sample_ddim_gammas_needs_noise():
    with pytest.raises(ValueError, match=r"expected noise, because step 0 at eta 1\.0 adds some"):
        sample_ddim_gammas(network, normal(), [0.1, 0.5, 1.0], Parameterisation("v"), eta=1.0)

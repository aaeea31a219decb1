import numpy as np
import pytest

from saishiki.runtime.samplers import (
    Parameterisation,
    denoise_at_sigmas,
    denoise_in_turn,
    denoised_from_prediction,
    eps_from_prediction,
    guide,
    input_scale,
    x0_from_prediction,
)

SHAPE = (2, 3, 4, 5)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape or SHAPE)


X0, EPS = normal(seed=1), normal(seed=2)
SIGNAL, NOISE = 0.6, 0.8


@pytest.mark.parametrize(("kind", "prediction"), [("eps", EPS), ("v", SIGNAL * EPS - NOISE * X0)], ids=["eps", "v"])
def test_x0_and_eps_come_back_from_x(kind, prediction):
    x = SIGNAL * X0 + NOISE * EPS
    levels = {"signal": SIGNAL, "noise": NOISE}
    np.testing.assert_allclose(x0_from_prediction(x, prediction, kind, **levels), X0, atol=1e-12)
    np.testing.assert_allclose(eps_from_prediction(x, prediction, kind, **levels), EPS, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_denoised_is_x0_in_the_other_units(kind, sigma):
    scale = input_scale(sigma)
    assert scale == pytest.approx(1 / np.sqrt(1 + sigma**2))
    x = X0 + sigma * EPS
    prediction = EPS if kind == "eps" else scale * EPS - sigma * scale * X0
    denoised = denoised_from_prediction(x, prediction, kind, sigma=sigma)
    np.testing.assert_allclose(denoised, X0, atol=1e-10)
    other = x0_from_prediction(scale * x, prediction, kind, signal=scale, noise=sigma * scale)
    np.testing.assert_allclose(denoised, other, atol=1e-10)


def test_eps_taken_for_v_shows():
    x = SIGNAL * X0 + NOISE * EPS
    assert np.abs(x0_from_prediction(x, EPS, "v", signal=SIGNAL, noise=NOISE) - X0).max() > 0.5


def test_guide_in_every_mode():
    c, u1, u2 = (normal(seed=seed) for seed in range(3))
    np.testing.assert_array_equal(guide(c, ()), c)
    np.testing.assert_allclose(guide(np.concatenate([c, u1]), (4.0,)), 4 * c - 3 * u1)
    both = guide(np.concatenate([c, u1, u2]), (4.0, 1.5))
    np.testing.assert_allclose(both, 2.75 * c - 1.5 * u1 - 0.25 * u2, atol=1e-12)


def test_guide_by_one_is_no_guidance():
    c, u = normal(seed=0), normal(seed=1)
    np.testing.assert_allclose(guide(np.concatenate([c, u]), (1.0,)), c, atol=1e-14)


def test_scales_of_a_window():
    how = Parameterisation("v", guidance=((4.0, 4.0, 1.0), 2))
    assert [how.scales(k) for k in range(3)] == [(4.0, 2.0), (4.0, 2.0), (1.0, 2.0)]
    assert how.slots == 3


def test_denoise_at_sigmas_scales_guides_and_clamps():
    seen = []

    def network(model_input, k):
        seen.append((model_input, k))
        return np.concatenate([EPS, -EPS])

    x = X0 + 3.0 * EPS
    x0 = denoise_at_sigmas(network, [9.0, 3.0], Parameterisation("eps", (0.75,), clamp=(-1, 1)))(x, 1)
    ((model_input, k),) = seen
    assert k == 1
    np.testing.assert_allclose(model_input, x / np.sqrt(10))
    np.testing.assert_allclose(x0, np.clip(x - 3.0 * 0.5 * EPS, -1, 1), atol=1e-12)
    assert (x0 == 1).any()
    assert (x0 == -1).any()


def test_denoise_in_turn_numbers_its_evaluations():
    how, seen = Parameterisation("eps", ((4.0, 1.0, 2.0),)), []

    def network(model_input, e):
        seen.append(e)
        return np.concatenate([EPS, -EPS])

    denoise = denoise_in_turn(network, how)
    for e, (sigma, scale) in enumerate([(9.0, 4.0), (3.0, 1.0), (3.0, 2.0)]):
        np.testing.assert_allclose(denoise(X0, sigma), X0 - sigma * (2 * scale - 1) * EPS, atol=1e-12)
        assert seen == list(range(e + 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction": "x0"}, "expected a prediction of eps or v, got 'x0'"),
        ({"prediction": "v", "guidance": (1, 2, 3)}, "expected at most 2 guidance scales"),
        ({"prediction": "v", "clamp": (1.0, -1.0)}, "expected the clamp's low end first"),
        ({"prediction": "v", "clamp": (float("nan"), 1.0)}, "expected the clamp's low end first"),
    ],
    ids=["prediction", "guidance", "clamp", "NaN"],
)
def test_parameterisation_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Parameterisation(**arguments)

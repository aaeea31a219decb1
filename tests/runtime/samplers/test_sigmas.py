import numpy as np
import pytest

from saishiki.runtime.samplers.sigmas import (
    SPACINGS,
    sigma_from_t,
    sigmas_from_gammas,
    t_from_sigma,
    with_zero,
)
from tests.conformance import FOLDER, Case, cases_of, families
from tests.conformance_runners.colorizediffusion.schedules import run_schedule

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
GAMMAS = np.cumprod(1 - BETAS).astype(np.float32)
TABLE = sigmas_from_gammas(GAMMAS)


def recorded() -> list:
    found = [case for family in families() for case in cases_of(family) if case.module == "schedule"]
    found = [case for case in found if case.family.startswith("colorizediffusion-v")]
    return [pytest.param(case, id=f"{case.family}-{case.name}") for case in found] or [
        pytest.param(None, marks=pytest.mark.skip(reason=f"needs recorded cases in {FOLDER}"), id="absent")
    ]


def worst(case: Case, got: dict) -> float:
    """The largest error of all arrays, in units of what each is allowed."""
    tolerances = case.entry["tol"]
    return max(
        float((np.abs(got[name] - want) / (tolerances[name]["atol"] + tolerances[name]["rtol"] * np.abs(want))).max())
        for name, want in case.outputs.items()
    )


@pytest.mark.parametrize("case", recorded())
def test_schedules_are_as_published(case: Case) -> None:
    got = run_schedule(case)
    assert all(got[name].shape == want.shape and got[name].dtype == want.dtype for name, want in case.outputs.items())
    assert worst(case, got) <= 1
    assert worst(case, {name: array * np.float32(1.0001) + 1e-4 for name, array in got.items()}) > 1


def test_sigmas_from_gammas_of_the_published_betas():
    np.testing.assert_allclose(TABLE[[0, -1]], [0.0291675366, 14.614643096], rtol=1e-6)
    assert TABLE.dtype == np.float32


@pytest.mark.parametrize(
    "gammas",
    [GAMMAS[::-1], [0.9], [1.0, 0.5], [0.5, 0.0], [0.9, 0.9], [0.9, np.nan], [[0.9, 0.5]]],
    ids=["rising", "one", "at 1", "at 0", "equal", "NaN", "2d"],
)
def test_sigmas_from_gammas_refuses(gammas):
    with pytest.raises(ValueError, match="expected alphas_cumprod"):
        sigmas_from_gammas(gammas)


def test_t_and_sigma_are_inverse_to_the_last_timestep():
    t = np.concatenate([np.linspace(0, 999, 4001), np.linspace(998, 999, 33)]).astype(np.float32)
    np.testing.assert_allclose(t_from_sigma(sigma_from_t(t, TABLE), TABLE), t, atol=1e-3)
    np.testing.assert_array_equal(t_from_sigma(TABLE, TABLE), np.arange(1000))


def test_t_from_sigma_stays_within_the_table():
    np.testing.assert_array_equal(t_from_sigma(np.float32([1e-3, 99.0]), TABLE), [0, 999])


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("name", SPACINGS)
def test_spacing_falls_from_the_top_of_the_table(name, steps):
    sigmas = SPACINGS[name](TABLE, steps)
    assert sigmas.shape == (steps,)
    assert sigmas.dtype == np.float32
    assert sigmas[0] == pytest.approx(TABLE[-1], rel=1e-6)
    assert (np.diff(with_zero(sigmas)) < 0).all()
    if steps > 1 and name != "SGM Uniform":
        assert sigmas[-1] == pytest.approx(TABLE[0], rel=1e-6)


def test_spacings_are_even_in_what_they_say():
    for name, even in {
        "Karras": lambda s: s ** (1 / 7),
        "Exponential": np.log,
        "Uniform": lambda s: t_from_sigma(s, TABLE),
        "SGM Uniform": lambda s: t_from_sigma(s, TABLE),
    }.items():
        steps = np.diff(even(SPACINGS[name](TABLE, 9)))
        np.testing.assert_allclose(steps, steps.mean(), rtol=1e-4, err_msg=name)

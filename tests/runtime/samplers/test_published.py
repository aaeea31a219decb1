"""The samplers and their tables against recorded runs of the published implementations (``shared/conformance``)."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from saishiki.runtime.samplers import (
    Parameterisation,
    denoise_at_sigmas,
    denoised_from_prediction,
    dpmpp_2m_sde_table,
    dpmpp_2m_table,
    dpmpp_3m_sde_table,
    euler_ancestral_table,
    euler_table,
    guide,
    input_scale,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m_sde,
    sample_euler,
    sample_euler_ancestral,
    table_step,
)
from tests.conformance import FOLDER, Case, cases_of, families

PLAIN = Parameterisation("eps")
# A sampler takes (denoise, x, sigmas, noise), its table's builder (sigmas,).
SOLVERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "Euler": (lambda d, x, s, z, on: sample_euler(d, x, s, on_step=on), lambda s: euler_table(s, PLAIN)),
    "Euler a": (
        lambda d, x, s, z, on: sample_euler_ancestral(d, x, s, noise=z, on_step=on),
        lambda s: euler_ancestral_table(s, PLAIN),
    ),
    "DPM++ 2M": (lambda d, x, s, z, on: sample_dpmpp_2m(d, x, s, on_step=on), lambda s: dpmpp_2m_table(s, PLAIN)),
    "DPM++ 2M SDE": (
        lambda d, x, s, z, on: sample_dpmpp_2m_sde(d, x, s, noise=z, on_step=on),
        lambda s: dpmpp_2m_sde_table(s, PLAIN),
    ),
    "DPM++ 2M SDE Heun": (
        lambda d, x, s, z, on: sample_dpmpp_2m_sde(d, x, s, noise=z, solver="heun", on_step=on),
        lambda s: dpmpp_2m_sde_table(s, PLAIN, solver="heun"),
    ),
    "DPM++ 3M SDE": (
        lambda d, x, s, z, on: sample_dpmpp_3m_sde(d, x, s, noise=z, on_step=on),
        lambda s: dpmpp_3m_sde_table(s, PLAIN),
    ),
}


def cases(applies: Callable[[Case], bool]) -> list[Any]:
    """Every case of every family that applies, as parameters."""
    found = [case for family in families() for case in cases_of(family) if applies(case)]
    return [pytest.param(case, id=f"{case.family}-{case.name}") for case in found] or [
        pytest.param(None, marks=pytest.mark.skip(reason=f"needs recorded cases in {FOLDER}"), id="absent")
    ]


def is_loop(case: Case) -> bool:
    """A whole run of one of our solvers, with every guided x0 of it."""
    return case.module == "sample" and case.params.get("sampler") in SOLVERS and "denoised" in case.entry["outputs"]


def is_guided(case: Case) -> bool:
    """One evaluation: the network's outputs in every slot, and the guided x0."""
    return case.module == "cfg_denoiser"


def walk(case: Case, *, by_table: bool) -> Iterator[np.ndarray]:
    """x at the start and after every step, from the recorded x0, in fp32."""
    out, noise = case.outputs, case.inputs.get("step_noise")
    sigmas = np.append(out["sigma_in"], np.float32(0))
    x = case.inputs["x_T"] * sigmas[0]
    sample, build = SOLVERS[case.params["sampler"]]
    states = [x]
    if by_table:
        for k, row in enumerate(build(sigmas)):
            # eps that leads to the recorded x0: x - sigma * eps.
            eps = (states[k] - out["denoised"][k]) / sigmas[k]
            before = {f"x0_{back}": out["denoised"][k - back] for back in (1, 2) if k >= back}
            z = noise[k] if noise is not None and k < len(noise) else None
            states.append(table_step(states[k], eps, row, noise=z, **before)[0])
    else:
        sample(lambda x, k: out["denoised"][k], x, sigmas, noise, lambda k, x: states.append(x))
    yield from states


@pytest.mark.parametrize("by_table", [False, True], ids=["sampler", "table"])
@pytest.mark.parametrize("case", cases(is_loop))
def test_solver_walks_as_published(case: Case, by_table: bool) -> None:
    *before, latent = walk(case, by_table=by_table)
    for k, (x, published) in enumerate(zip(before, case.outputs["x_in"], strict=True)):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, published, rtol=1e-5, atol=2e-5 * np.abs(published).max(), err_msg=f"step {k}")
    np.testing.assert_allclose(latent, case.outputs["latent"], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("case", cases(lambda case: is_loop(case) and case.params["sampler"] != "Euler"))
def test_another_solver_walks_elsewhere(case: Case) -> None:
    """The comparison above tells solvers apart: Euler leaves the recorded path of all others."""
    out = case.outputs
    states: list[np.ndarray] = []
    sigmas = np.append(out["sigma_in"], 0.0)
    sample_euler(lambda x, k: out["denoised"][k], out["x_in"][0], sigmas, on_step=lambda k, x: states.append(x))
    assert max(np.abs(x - published).max() for x, published in zip(states, out["x_in"][1:], strict=False)) > 1e-2


def is_scaled(case: Case) -> bool:
    """A run in sigma space, with what the network was given."""
    return case.module == "sample" and case.params.get("sampler") in SOLVERS and "unet_x" in case.entry["outputs"]


@pytest.mark.parametrize("case", cases(is_scaled))
def test_first_model_input_is_as_published(case: Case) -> None:
    # Upstream's largest noise level, which all its schedules begin with: sqrt(1 / gammas[999] - 1).
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    sigma = float(np.sqrt(1 / np.prod(1 - betas) - 1))
    x = case.inputs["init_noise"] * sigma
    published = case.outputs["unet_x"][0][: len(x)]
    np.testing.assert_allclose(x * input_scale(sigma), published, rtol=1e-5, atol=1e-5)
    assert np.abs(case.inputs["init_noise"] - published).max() > 1e-3


def scales_of(case: Case) -> tuple[float, ...]:
    reference, sketch = case.params["gs"]
    both = {"none": (), "reference": (reference,), "sketch": (sketch,), "both": (reference, sketch)}
    return both[case.params["guidance"]]


def x0_of_row(case: Case, row: int, scales: tuple[float, ...]) -> np.ndarray:
    """The guided x0 of one image of the batch, from the recorded outputs."""
    x, batch = case.inputs["x"][row : row + 1], len(case.inputs["x"])
    how, sigma = Parameterisation(case.params["parameterization"], scales), case.inputs["sigma"][row]
    unet_out = case.outputs["unet_out"][row::batch]
    return denoise_at_sigmas(lambda scaled, k: unet_out, [sigma], how)(x, 0)


@pytest.mark.parametrize("case", cases(is_guided))
def test_guidance_is_as_published(case: Case) -> None:
    for row, published in enumerate(case.outputs["denoised"]):
        x0 = x0_of_row(case, row, scales_of(case))[0]
        np.testing.assert_allclose(x0, published, rtol=1e-5, atol=1e-5 * np.abs(published).max())


@pytest.mark.parametrize("case", cases(lambda case: is_guided(case) and len(scales_of(case)) == 2))
def test_guidance_scales_are_in_order(case: Case) -> None:
    wrong = x0_of_row(case, 0, scales_of(case)[::-1])[0]
    assert np.abs(wrong - case.outputs["denoised"][0]).max() > 1e-2


@pytest.mark.parametrize("case", cases(is_guided))
def test_guided_table_is_as_published(case: Case) -> None:
    for row, published in enumerate(case.outputs["denoised"]):
        x, sigma = case.inputs["x"][row : row + 1], float(case.inputs["sigma"][row])
        how = Parameterisation(case.params["parameterization"], scales_of(case))
        (step,) = euler_table([sigma, 0.0], how)
        result, x0 = table_step(x, case.outputs["unet_out"][row :: len(case.inputs["x"])], step)
        np.testing.assert_array_equal(result, x0)
        np.testing.assert_allclose(x0[0], published, rtol=1e-5, atol=1e-5 * np.abs(published).max())


@pytest.mark.parametrize("case", cases(lambda case: is_guided(case) and case.params["guidance"] == "both"))
def test_guiding_before_or_after_x0_is_the_same(case: Case) -> None:
    """Upstream guides x0, the table guides the prediction."""
    x, sigma = case.inputs["x"][:1], float(case.inputs["sigma"][0])
    outputs, kind = case.outputs["unet_out"][:: len(case.inputs["x"])], case.params["parameterization"]
    after = guide(denoised_from_prediction(x, outputs, kind, sigma=sigma), scales_of(case))
    before = denoised_from_prediction(x, guide(outputs, scales_of(case)), kind, sigma=sigma)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)

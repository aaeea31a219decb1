"""Solvers by their published names: recorded runs, diffusers' own schedulers, and tables that walk as they do."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from saishiki.runtime.samplers import (
    SAMPLERS,
    SCHEDULERS,
    Parameterisation,
    Solver,
    history_slots,
    known_sampler,
    known_scheduler,
    needs_noise,
    solver_for,
    table_step,
)
from tests.conformance import FOLDER, Case, cases_of, families

GAMMAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).astype(np.float32)
SHAPE = (2, 3, 2, 2)
TABLES = ("DPM++ 2M", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE", "Euler", "Euler a")
TABLES += ("diffuser_dpm", "diffuser_ddim")


def solver(sampler: str, *, scheduler: str = "Automatic", steps: int = 5, how: Any = None) -> Solver:
    how = how or Parameterisation("v")
    return solver_for(sampler, scheduler=scheduler, steps=steps, alphas_cumprod=GAMMAS, how=how)


def of_case(case: Case, *, prediction: Any = "v", sampler: str | None = None) -> Solver:
    params, how = case.params, Parameterisation(prediction)
    return solver(sampler or params["sampler"], scheduler=params["scheduler"], steps=params["steps"], how=how)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape or SHAPE, dtype=np.float32)


def noise_for(of: Solver) -> Any:
    return normal(of.noises, *SHAPE, seed=7) if of.noises else None


def cases(applies: Callable[[Case], bool]) -> list[Any]:
    found = [case for family in families() for case in cases_of(family) if case.module == "sample" and applies(case)]
    return [pytest.param(case, id=f"{case.family}-{case.name}") for case in found] or [
        pytest.param(None, marks=pytest.mark.skip(reason=f"needs recorded cases in {FOLDER}"), id="absent")
    ]


@pytest.mark.parametrize("case", cases(lambda case: "unet_t" in case.entry["outputs"]))
def test_solver_asks_where_the_published_one_does(case: Case) -> None:
    of, recorded = of_case(case), case.outputs
    assert of.timesteps.dtype == np.float32
    np.testing.assert_allclose(of.timesteps, recorded["unet_t"], atol=1e-3)
    start = case.inputs["init_noise"] * np.float32(of.start_scale)
    first = recorded["unet_x"][0][: len(start)]
    np.testing.assert_allclose(start * np.float32(of.first_input), first, rtol=1e-5, atol=1e-6)
    assert of.noises == len(case.inputs.get("step_noise", ()))


def walk(case: Case, of: Solver) -> tuple[list[np.ndarray], np.ndarray]:
    """The network's inputs in sigma space, and the image, where the network's x0 are the recorded ones."""
    sigmas = case.outputs["sigma_in"].reshape(len(case.outputs["x_in"]), -1)[:, 0]
    asked: list[np.ndarray] = []

    def network(model_input: Any, e: int) -> Any:
        x = model_input * np.float32(np.sqrt(float(sigmas[e]) ** 2 + 1))
        asked.append(x)
        return (x - case.outputs["denoised"][e]) / sigmas[e]

    image = of.sample(network, case.inputs["x_T"] * np.float32(of.start_scale), case.inputs.get("step_noise"))
    return asked, image


@pytest.mark.parametrize("case", cases(lambda case: "denoised" in case.entry["outputs"]))
def test_solver_walks_as_published(case: Case) -> None:
    asked, image = walk(case, of_case(case, prediction="eps"))
    for e, (x, published) in enumerate(zip(asked, case.outputs["x_in"], strict=True)):
        np.testing.assert_allclose(x, published, rtol=1e-5, atol=5e-5 * np.abs(published).max(), err_msg=str(e))
    np.testing.assert_allclose(image, case.outputs["latent"], rtol=1e-5, atol=5e-5)
    assert image.dtype == np.float32


TWINS = {
    "Heun": "DPM++ 2S a",
    "DPM2": "Heun",
    "DPM2 a": "DPM++ 2S a",
    "DPM++ 2S a": "DPM2 a",
    "LMS": "Euler",
}


@pytest.mark.parametrize(
    "case", cases(lambda case: case.params["sampler"] in TWINS and "x_in" in case.entry["outputs"])
)
def test_another_solver_walks_elsewhere(case: Case) -> None:
    """The comparison above tells solvers apart that ask as often."""
    of, other = of_case(case, prediction="eps"), TWINS[case.params["sampler"]]
    twin = of_case(case, prediction="eps", sampler=other)
    noise = case.inputs.get("step_noise") if twin.noises else None
    if twin.noises and noise is None:
        noise = np.zeros((twin.noises, *case.inputs["x_T"].shape), np.float32)
    x = case.inputs["x_T"] * np.float32(of.start_scale)

    def network(model_input: Any, e: int) -> Any:
        return np.tanh(model_input + 0.1 * e)

    own = of.sample(network, x, case.inputs.get("step_noise"))
    assert np.abs(own - twin.sample(network, x, noise)).max() > 1e-2


def diffusers_scheduler(sampler: str, prediction: str, karras: bool) -> Any:
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'saishiki[export]'")
    names = {"dpm": "DPMSolverMultistepScheduler", "ddim": "DDIMScheduler", "lms": "LMSDiscreteScheduler"}
    options = {"ddim": {"clip_sample": False}}.get(sampler, {"use_karras_sigmas": karras})
    return getattr(diffusers, names[sampler])(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
        **options,
    )


def network(x: Any, e: int) -> Any:
    return np.tanh(0.7 * x + 0.1 * e) - 0.1 * x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("dpm", "Automatic"), ("dpm", "Karras"), ("ddim", "Automatic"), ("lms", "Automatic"), ("lms", "Karras")],
)
def test_solver_is_diffusers_own(sampler: str, scheduler: str, prediction: Any, steps: int) -> None:
    scheduling = diffusers_scheduler(sampler, prediction, scheduler == "Karras")
    import torch

    scheduling.set_timesteps(steps)
    of = solver(f"diffuser_{sampler}", scheduler=scheduler, steps=steps, how=Parameterisation(prediction))
    np.testing.assert_allclose(of.timesteps, scheduling.timesteps.numpy(), atol=1e-3)
    x = torch.from_numpy(normal()) * scheduling.init_noise_sigma
    for e, t in enumerate(scheduling.timesteps):
        output = torch.from_numpy(network(scheduling.scale_model_input(x, t).numpy(), e))
        x = scheduling.step(output, t, x).prev_sample
    ours = of.sample(network, normal() * np.float32(of.start_scale), None)
    np.testing.assert_allclose(ours, x.numpy(), rtol=1e-4, atol=1e-4)
    if steps > 1:  # a single step starts at t = 1 or near, where an eps hardly matters
        other = Parameterisation("v" if prediction == "eps" else "eps")
        swapped = solver(f"diffuser_{sampler}", scheduler=scheduler, steps=steps, how=other)
        assert np.abs(swapped.sample(network, normal() * np.float32(swapped.start_scale), None) - ours).max() > 0.05


def run_table(of: Solver, network: Callable[[Any, int], Any], x: Any, noise: Any) -> Any:
    assert of.table is not None
    model_input, past = np.float32(of.first_input) * x, [None, None]
    for k, row in enumerate(of.table):
        drawn = noise[k] if noise is not None and k < len(noise) else None
        x, x0 = table_step(x, network(model_input, k), row, noise=drawn, x0_1=past[0], x0_2=past[1])
        model_input, past = row[-1] * x, [x0, past[0]]
    return x


@pytest.mark.parametrize("scheduler", ["Automatic", "Karras"])
@pytest.mark.parametrize(("kind", "guidance"), list(product(["eps", "v"], [(), (4.0,), (4.0, 1.5)])), ids=str)
@pytest.mark.parametrize("sampler", TABLES)
def test_table_walks_as_its_solver(sampler: str, kind: Any, guidance: Any, scheduler: str) -> None:
    of = solver(sampler, scheduler=scheduler, steps=7, how=Parameterisation(kind, guidance))

    def slots(x: Any, e: int) -> Any:
        assert x.shape == SHAPE
        return np.concatenate([network(x, e) + 0.1 * slot for slot in range(of.slots)])

    x, noise = normal() * np.float32(of.start_scale), noise_for(of)
    want = of.sample(slots, x, noise)
    assert of.table is not None
    assert of.table.shape == (of.steps, 13) == (len(of.timesteps), 13)
    np.testing.assert_allclose(run_table(of, slots, x, noise), want, rtol=1e-5, atol=1e-5 * max(1, np.abs(want).max()))
    assert needs_noise(of.table) == (of.noises > 0)
    of.table[-1, 2:4] *= np.float32(1.01)
    assert np.abs(run_table(of, slots, x, noise) - want).max() > 1e-4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_solver_without_a_table_is_one_that_has_none(sampler: str) -> None:
    assert (solver(sampler).table is None) == (sampler not in TABLES)


def test_history_of_tables() -> None:
    lengths = {"DPM++ 3M SDE": 2, "Euler": 0, "Euler a": 0, "diffuser_ddim": 0}
    assert {name: history_slots(solver(name).table) for name in TABLES} == dict.fromkeys(TABLES, 1) | lengths


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    ("sampler", "steps"),
    [(sampler, steps) for sampler in SAMPLERS for steps in (1, 2, 4, 7) if steps > 3 or sampler != "diffuser_pndm"],
)
def test_solver_does_what_it_says(sampler: str, scheduler: str, steps: int) -> None:
    of, asked, reported = solver(sampler, scheduler=scheduler, steps=steps), [], []

    def asking(model_input: Any, e: int) -> Any:
        asked.append((e, model_input))
        return network(model_input, e)

    x = normal() * np.float32(of.start_scale)
    image = of.sample(asking, x, noise_for(of), lambda k, x: reported.append((k, x)))
    assert [e for e, _ in asked] == list(range(len(of.timesteps)))
    assert [k for k, _ in reported] == list(range(of.steps))
    assert of.steps <= len(of.timesteps)
    assert (of.timesteps >= 0).all()
    assert (of.timesteps <= 999).all()
    np.testing.assert_allclose(asked[0][1], np.float32(of.first_input) * x, rtol=1e-6)
    np.testing.assert_array_equal(image, reported[-1][1])
    assert np.isfinite(image).all()
    assert image.dtype == np.float32


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_solver_guides_at_every_evaluation(sampler: str) -> None:
    plain = solver(sampler)
    window = [1.0 + (e % 3) for e in range(len(plain.timesteps))]
    guided = solver(sampler, how=Parameterisation("v", (window,)))
    assert guided.slots == 2

    def both(x: Any, e: int) -> Any:
        return np.concatenate([network(x, e), network(x, e) - 1])

    def alone(x: Any, e: int) -> Any:
        return network(x, e) + (window[e] - 1)

    x, noise = normal() * np.float32(plain.start_scale), noise_for(plain)
    want = plain.sample(alone, x, noise)
    np.testing.assert_allclose(guided.sample(both, x, noise), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_numpy_and_torch_agree(sampler: str) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
    of = solver(sampler)
    x, noise = normal() * np.float32(of.start_scale), noise_for(of)
    theirs = of.sample(
        lambda x, e: (0.7 * x + 0.1 * e).tanh(), torch.from_numpy(x), None if noise is None else torch.from_numpy(noise)
    )
    ours = of.sample(lambda x, e: np.tanh(0.7 * x + np.float32(0.1 * e)), x, noise)
    assert theirs.dtype == torch.float32
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-4, atol=1e-4)


def test_runs_of_a_solver_do_not_touch_one_another() -> None:
    of = solver("Heun", how=Parameterisation("v", ([1.0 + e for e in range(9)],)))

    def both(x: Any, e: int) -> Any:
        return np.concatenate([network(x, e), network(x, e) - 1])

    first = of.sample(both, normal(), None)
    np.testing.assert_array_equal(of.sample(both, normal(), None), first)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("dpmpp-2m", "DPM++ 2M"),
        ("DPMPP_2M_SDE_heun", "DPM++ 2M SDE Heun"),
        ("euler-a", "Euler a"),
        ("Euler Ancestral", "Euler a"),
        ("DIFFUSER_DPM", "diffuser_dpm"),
        ("dpm++ 3m sde", "DPM++ 3M SDE"),
    ],
)
def test_known_sampler_spellings(given: str, name: str) -> None:
    assert known_sampler(given) == name
    assert solver(given).name == name


def test_names_are_told_apart() -> None:
    assert [known_sampler(name) for name in SAMPLERS] == list(SAMPLERS)
    assert [known_scheduler(name) for name in SCHEDULERS] == list(SCHEDULERS)
    assert known_scheduler("sgm-uniform") == "SGM Uniform"


@pytest.mark.parametrize("name", ["DPM adaptive", "dpm", "", "ddim2"])
def test_unknown_sampler_lists_all(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown sampler .*; expected one of diffuser_dpm, diffuser_ddim") as error:
        solver(name)
    assert all(known in str(error.value) for known in SAMPLERS)


def test_unknown_scheduler_lists_all() -> None:
    with pytest.raises(ValueError, match="unknown scheduler 'cosine'; expected one of Automatic, Karras") as error:
        solver("Euler", scheduler="cosine")
    assert all(known in str(error.value) for known in SCHEDULERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_out_of_range(sampler: str) -> None:
    for steps in (0, -1, 999):
        with pytest.raises(ValueError, match=f"steps must be between 1 and 998, got {steps}"):
            solver(sampler, steps=steps)
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        solver(sampler, steps=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_number_of_steps_stays_in_the_schedule(sampler: str) -> None:
    for steps in (4, 8, 17, 333, 499, 500, 997, 998):
        of = solver(sampler, steps=steps)
        assert np.isfinite(of.timesteps).all()
        assert of.timesteps.max() <= 999


def test_solver_refuses_another_number_of_noises() -> None:
    of = solver("Euler a", steps=4)
    with pytest.raises(ValueError, match="Euler a: expected 3 noises for 4 steps, got 0"):
        of.sample(network, normal(), None)
    with pytest.raises(ValueError, match="Euler a: expected 3 noises for 4 steps, got 4"):
        of.sample(network, normal(), normal(4, *SHAPE))
    with pytest.raises(ValueError, match="Euler: expected 0 noises for 4 steps, got 1"):
        solver("Euler", steps=4).sample(network, normal(), normal(1, *SHAPE))

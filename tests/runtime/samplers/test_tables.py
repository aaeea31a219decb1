"""Tables against the samplers that they stand for: every row, evaluated in numpy, over whole runs."""

from itertools import product

import numpy as np
import pytest

from saishiki.runtime.samplers import (
    COLUMNS,
    Parameterisation,
    ddim_gammas_table,
    ddim_table,
    denoise_at_sigmas,
    dpmpp_2m_sde_table,
    dpmpp_2m_table,
    dpmpp_3m_sde_table,
    euler_ancestral_table,
    euler_table,
    history_slots,
    input_scale,
    needs_noise,
    sample_ddim,
    sample_ddim_gammas,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m_sde,
    sample_euler,
    sample_euler_ancestral,
    table_step,
)
from saishiki.runtime.schedule import DiffusionSchedule, ddim_schedule, linear_betas, schedule_buffers

SHAPE = (2, 3, 2, 3)
STEPS = 6
SIGMAS = np.append(np.geomspace(14.6, 0.1, STEPS), 0.0)
GAMMAS = np.append(np.linspace(0.05, 0.9, STEPS), 1.0)
GUIDANCE = {"unguided": (), "one": (4.0,), "two": (4.0, 1.5), "window": (4.0, (3.0, 3.0, 3.0, 1.0, 1.0, 1.0))}
CLAMP = {"free": None, "clamped": (-1.0, 1.5)}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape or SHAPE)


NOISE = normal(STEPS, *SHAPE, seed=9)


def network(model_input, k):
    """Any smooth function in which slots differ."""
    shift = np.linspace(-0.3, 0.3, len(model_input))[:, None, None, None]
    return np.tanh(1.3 * model_input + shift + 0.1 * k) - 0.2 * model_input


def repeating(how):
    """The network, with its input once per slot."""
    return lambda x, k: network(np.concatenate([x] * how.slots), k)


def at_sigmas(sample, **options):
    def run(how):
        return sample(denoise_at_sigmas(repeating(how), SIGMAS, how), SIGMAS[0] * normal(), SIGMAS, **options)

    return run


SOLVERS = {
    "ddim": (
        lambda how: sample_ddim_gammas(repeating(how), normal(), GAMMAS, how),
        lambda how: ddim_gammas_table(GAMMAS, how),
    ),
    "ddim, eta 1": (
        lambda how: sample_ddim_gammas(repeating(how), normal(), GAMMAS, how, eta=1.0, noise=NOISE),
        lambda how: ddim_gammas_table(GAMMAS, how, eta=1.0),
    ),
    "euler": (at_sigmas(sample_euler), lambda how: euler_table(SIGMAS, how)),
    "euler a": (at_sigmas(sample_euler_ancestral, noise=NOISE), lambda how: euler_ancestral_table(SIGMAS, how)),
    "euler a, eta 0.5": (
        at_sigmas(sample_euler_ancestral, noise=NOISE, eta=0.5),
        lambda how: euler_ancestral_table(SIGMAS, how, eta=0.5),
    ),
    "2m": (at_sigmas(sample_dpmpp_2m), lambda how: dpmpp_2m_table(SIGMAS, how)),
    "2m sde": (at_sigmas(sample_dpmpp_2m_sde, noise=NOISE), lambda how: dpmpp_2m_sde_table(SIGMAS, how)),
    "2m sde, eta 0": (
        at_sigmas(sample_dpmpp_2m_sde, noise=None, eta=0.0),
        lambda how: dpmpp_2m_sde_table(SIGMAS, how, eta=0.0),
    ),
    "2m sde heun": (
        at_sigmas(sample_dpmpp_2m_sde, noise=NOISE, solver="heun"),
        lambda how: dpmpp_2m_sde_table(SIGMAS, how, solver="heun"),
    ),
    "3m sde": (at_sigmas(sample_dpmpp_3m_sde, noise=NOISE), lambda how: dpmpp_3m_sde_table(SIGMAS, how)),
    "3m sde, eta 0.5": (
        at_sigmas(sample_dpmpp_3m_sde, noise=NOISE, eta=0.5),
        lambda how: dpmpp_3m_sde_table(SIGMAS, how, eta=0.5),
    ),
}
LOOKS_BACK = {"2m": 1, "2m sde": 1, "2m sde, eta 0": 1, "2m sde heun": 1, "3m sde": 2, "3m sde, eta 0.5": 2}
DETERMINISTIC = ("ddim", "euler", "2m", "2m sde, eta 0")


def run_table(table, how, *, in_sigmas):
    """A run by the table alone: the model's input of each step comes from the row before."""
    x = normal() * (SIGMAS[0] if in_sigmas else 1.0)
    model_input = x * (input_scale(SIGMAS[0]) if in_sigmas else 1.0)
    noise = NOISE if needs_noise(table) else [None] * STEPS
    past = [None, None]
    for k, row in enumerate(table):
        prediction = network(np.concatenate([model_input] * how.slots), k)
        x, x0 = table_step(x, prediction, row, noise=noise[k], x0_1=past[0], x0_2=past[1])
        model_input, past = float(row[-1]) * x, [x0, past[0]]
    return x


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize(("kind", "guidance", "clamp"), list(product(["eps", "v"], GUIDANCE, CLAMP)))
@pytest.mark.parametrize("name", SOLVERS)
def test_table_runs_as_its_sampler(name, kind, guidance, clamp):
    how = Parameterisation(kind, GUIDANCE[guidance], CLAMP[clamp])
    sample, build = SOLVERS[name]
    table = build(how)
    assert table.dtype == np.float32
    assert table.shape == (STEPS, len(COLUMNS))
    assert_close(run_table(table, how, in_sigmas=not name.startswith("ddim")), sample(how))


@pytest.mark.parametrize("name", SOLVERS)
def test_table_tells_what_it_needs(name):
    table = SOLVERS[name][1](Parameterisation("v"))
    assert history_slots(table) == LOOKS_BACK.get(name, 0)
    assert needs_noise(table) == (name not in DETERMINISTIC)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_wrong_coefficient_shows(column):
    """Every column matters to some solver."""
    how = Parameterisation("v", (4.0, 1.5), (-0.5, 0.5))
    shown = 0.0
    for name in ("ddim, eta 1", "3m sde"):
        table = SOLVERS[name][1](how)
        table[:-1, COLUMNS.index(column)] *= 1.01
        wrong = run_table(table, how, in_sigmas=name == "3m sde")
        shown = max(shown, np.abs(wrong - SOLVERS[name][0](how)).max())
    assert shown > 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_table_is_animediffusions_loop(eta):
    published = DiffusionSchedule(schedule_buffers(linear_betas(1000, 1e-6, 1e-2)))
    schedule = ddim_schedule(published, steps=STEPS, eta=eta)
    noise = NOISE if eta else None
    want = sample_ddim(network, normal(), schedule, noise=noise)
    x, table = normal(), ddim_table(schedule)
    for k, row in enumerate(table):
        x, x0 = table_step(x, network(x, k), row, noise=None if noise is None else noise[k])
        assert np.abs(x0).max() <= 1
        assert row[-1] == 1
    assert_close(x, want)
    assert needs_noise(table) == (eta > 0)
    assert history_slots(table) == 0


def test_sigma_tables_end_at_x0_exactly():
    for build in (build for name, (_, build) in SOLVERS.items() if "ddim" not in name):
        last = dict(zip(COLUMNS, build(Parameterisation("eps"))[-1], strict=True))
        assert [last[name] for name in ("x", "x0", "prediction", "x0_1", "x0_2", "noise")] == [0, 1, 0, 0, 0, 0]


def test_table_step_leaves_out_what_its_row_does_not_ask_for():
    row = dict.fromkeys(COLUMNS, 0.0) | {"x0_from_x": 1.0, "clamp_low": -1.0, "clamp_high": 1.0, "x0": 0.5}
    broken = np.full(SHAPE, np.nan)
    x = np.full(SHAPE, np.inf)
    result, x0 = table_step(x, np.zeros(SHAPE), list(row.values()), noise=broken, x0_1=broken, x0_2=broken)
    np.testing.assert_array_equal(x0, 1.0)
    np.testing.assert_array_equal(result, 0.5)


def test_table_step_of_a_row_of_zeros_is_zero():
    result, _ = table_step(normal(), normal(), [0.0] * len(COLUMNS))
    np.testing.assert_array_equal(result, np.zeros(SHAPE))


@pytest.mark.parametrize("name", ["noise", "x0_1", "x0_2"])
def test_table_step_says_what_is_missing(name):
    row = [float(column == name) for column in COLUMNS]
    with pytest.raises(ValueError, match=f"the row's coefficient of {name} is 1.0, but there is none; give {name}"):
        table_step(normal(), normal(), row)


@pytest.mark.parametrize(
    "build",
    [euler_table, euler_ancestral_table, dpmpp_2m_table, dpmpp_2m_sde_table, dpmpp_3m_sde_table],
    ids=lambda build: build.__name__,
)
def test_table_refuses_sigmas(build):
    with pytest.raises(ValueError, match="expected falling sigmas that end with 0"):
        build([1.0, 2.0, 0.0], Parameterisation("v"))


def test_ddim_gammas_table_refuses_gammas():
    with pytest.raises(ValueError, match="expected rising gammas between 0 and 1"):
        ddim_gammas_table([0.5, 0.1], Parameterisation("v"))


def test_dpmpp_2m_sde_table_refuses_another_solver():
    with pytest.raises(ValueError, match="expected a solver of midpoint or heun, got 'euler'"):
        dpmpp_2m_sde_table(SIGMAS, Parameterisation("v"), solver="euler")

"""Whole runs of the fused sampler step against the samplers in fp64, on the GPU or under Triton's interpreter."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

import numpy as np  # noqa: E402

from saishiki.kernels.fused_sampler_step import fused_sampler_step, fused_sampler_step_reference  # noqa: E402
from saishiki.runtime.samplers import (  # noqa: E402
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
)
from saishiki.runtime.schedule import DiffusionSchedule, ddim_schedule, linear_betas, schedule_buffers  # noqa: E402

Step = Callable[..., None]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOOR = 1e-6
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAN = float("nan")
SHAPE = (2, 3, 3, 5)
STEPS = 5
SIGMAS = np.append(np.geomspace(14.6, 0.1, STEPS), 0.0)
GAMMAS = np.append(np.linspace(0.05, 0.9, STEPS), 1.0)
GUIDANCE = {"unguided": (), "one": (4.0,), "window": ((3.0, 3.0, 1.0, 1.0, 1.0),), "two": (4.0, 1.5)}


def draw(shape: tuple[int, ...], *, seed: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def network(model_input: Any, k: int) -> Any:
    """Any smooth function in which slots differ, in fp32 or fp64, in numpy or torch."""
    lift = torch.linspace(-0.3, 0.3, len(model_input), device=model_input.device)[:, None, None, None]
    return (1.3 * model_input + lift + 0.1 * k).tanh() - 0.2 * model_input


def repeated(x: Any, how: Parameterisation) -> Any:
    """x once per slot."""
    return torch.cat([x] * how.slots)


def repeating(how: Parameterisation) -> Callable[[Any, int], Any]:
    """The network, with its input once per slot."""
    return lambda x, k: network(repeated(x, how), k)


def noisy(sample: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda x, noise, how: sample(
        denoise_at_sigmas(repeating(how), SIGMAS, how), x, SIGMAS, noise=noise, **options
    )


def quiet(sample: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, noise, how: sample(denoise_at_sigmas(repeating(how), SIGMAS, how), x, SIGMAS)


SOLVERS: dict[str, tuple[Callable[..., Any], Callable[[Parameterisation], Any]]] = {
    "ddim": (
        lambda x, noise, how: sample_ddim_gammas(repeating(how), x, GAMMAS, how),
        lambda how: ddim_gammas_table(GAMMAS, how),
    ),
    "ddim, eta 1": (
        lambda x, noise, how: sample_ddim_gammas(repeating(how), x, GAMMAS, how, eta=1.0, noise=noise),
        lambda how: ddim_gammas_table(GAMMAS, how, eta=1.0),
    ),
    "euler": (quiet(sample_euler), lambda how: euler_table(SIGMAS, how)),
    "euler a": (noisy(sample_euler_ancestral), lambda how: euler_ancestral_table(SIGMAS, how)),
    "2m": (quiet(sample_dpmpp_2m), lambda how: dpmpp_2m_table(SIGMAS, how)),
    "2m sde": (noisy(sample_dpmpp_2m_sde), lambda how: dpmpp_2m_sde_table(SIGMAS, how)),
    "2m sde heun": (
        noisy(sample_dpmpp_2m_sde, solver="heun"),
        lambda how: dpmpp_2m_sde_table(SIGMAS, how, solver="heun"),
    ),
    "3m sde": (noisy(sample_dpmpp_3m_sde), lambda how: dpmpp_3m_sde_table(SIGMAS, how)),
}


def start(name: str, shape: tuple[int, ...] = SHAPE) -> tuple[Any, float]:
    """x before the first step, and the scale of its model input."""
    if name.startswith("ddim"):
        return draw(shape, seed=1), 1.0
    return SIGMAS[0] * draw(shape, seed=1), input_scale(SIGMAS[0])


def walk(step: Step, name: str, how: Parameterisation, dtype: Any, shape: tuple[int, ...] = SHAPE) -> Any:
    """x after all steps: the network reads what the step wrote, in the model's dtype."""
    table = SOLVERS[name][1](how)
    (x, scale), kept = start(name, shape), history_slots(table)
    noise = draw((STEPS, *shape), seed=2) if needs_noise(table) else [None] * STEPS
    history = torch.full((kept, *shape), NAN, device=DEVICE) if kept else None
    model_input, on_device = repeated(scale * x, how).to(dtype), torch.from_numpy(table).to(DEVICE)
    for k in range(STEPS):
        prediction = network(model_input.float(), k).to(dtype)
        model_input = torch.full_like(model_input, NAN)
        step(x, prediction, on_device, k, noise=noise[k], history=history, model_input=model_input)
    return x


def assert_run_as_good_as_torch(name: str, how: Parameterisation, dtype: Any, shape: tuple[int, ...] = SHAPE) -> None:
    noise = draw((STEPS, *shape), seed=2).double()
    truth = SOLVERS[name][0](start(name, shape)[0].double(), noise, how)
    got, plain = (walk(step, name, how, dtype, shape) for step in (fused_sampler_step, fused_sampler_step_reference))
    scale = max(1.0, truth.abs().max())
    # A table in fp32 adds its own rounding, and a network amplifies: five steps have a wider floor than one.
    budget = 2 * (plain - truth).abs().max() + 3 * FLOOR * scale
    assert (plain - truth).abs().max() < (1e-4 if dtype == torch.float32 else 0.05) * scale
    assert (got - truth).abs().max() <= budget


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("name", SOLVERS)
def test_run_is_as_good_as_torch(name: str, kind: Any, guidance: str) -> None:
    clamp = (-1.0, 1.5) if guidance in ("one", "unguided") else None
    assert_run_as_good_as_torch(name, Parameterisation(kind, GUIDANCE[guidance], clamp), torch.float32)


@pytest.mark.parametrize("clamp", [None, (-1.0, 1.5)], ids=["free", "clamped"])
@pytest.mark.parametrize("guidance", ["unguided", "one", "two"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["ddim, eta 1", "3m sde"])
def test_run_in_the_models_dtype(name: str, dtype: str, guidance: str, clamp: Any) -> None:
    assert_run_as_good_as_torch(name, Parameterisation("v", GUIDANCE[guidance], clamp), DTYPES[dtype])


def test_a_run_with_another_prediction_shows() -> None:
    x, how = (
        walk(fused_sampler_step, "2m", Parameterisation("v", (4.0,)), torch.float32),
        Parameterisation("eps", (4.0,)),
    )
    assert (x - SOLVERS["2m"][0](start("2m")[0].double(), None, how)).abs().max() > 0.1


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_run_of_animediffusion(eta: float) -> None:
    published = DiffusionSchedule(schedule_buffers(linear_betas(1000, 1e-6, 1e-2)))
    schedule = ddim_schedule(published, steps=STEPS, eta=eta)
    x, noise = draw(SHAPE, seed=1), draw((STEPS, *SHAPE), seed=2)
    expected = sample_ddim(network, x.double(), schedule, noise=noise.double() if eta else None)
    table = torch.from_numpy(ddim_table(schedule)).to(DEVICE)
    for k in range(STEPS):
        fused_sampler_step(x, network(x, k), table, k, noise=noise[k] if eta else None)
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SOLVERS)
def test_run_on_the_gpu(name: str, dtype: str) -> None:
    assert DEVICE == "cuda"
    assert_run_as_good_as_torch(name, Parameterisation("v", (4.0, 1.5)), DTYPES[dtype], (2, 4, 96, 63))

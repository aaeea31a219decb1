"""The fused DDIM step against its reference in fp64, on the GPU or under Triton's interpreter."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")

import numpy as np  # noqa: E402

from saishiki.kernels import ddim_step, ddim_step_reference  # noqa: E402
from saishiki.runtime.samplers import ddim_step as ddim_step_in_numpy  # noqa: E402
from saishiki.runtime.schedule import (  # noqa: E402
    DDIMSchedule,
    DiffusionSchedule,
    ddim_schedule,
    linear_betas,
    schedule_buffers,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOOR = 1e-6
EPS_DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def nan_in_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds NaN, so that a number that is never written shows."""
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, float("nan")))


def schedule(*, eta: float) -> DDIMSchedule:
    return ddim_schedule(DiffusionSchedule(schedule_buffers(linear_betas(1000, 1e-6, 1e-2))), steps=10, eta=eta)


def coefficients(*, eta: float = 1.0) -> Any:
    return torch.from_numpy(schedule(eta=eta).coefficients()).to(DEVICE)


def draw(shape: tuple[int, ...], *, scale: float = 1.0, mean: float = 0.0, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale + mean).to(DEVICE)


def doubled(*tensors: Any) -> list[Any]:
    return [None if tensor is None else tensor.double() for tensor in tensors]


def assert_as_good_as_torch(x: Any, eps: Any, table: Any, k: int, noise: Any) -> None:
    """The error against fp64 is at most twice that of plain torch in fp32, plus a floor for numbers near 0."""
    x64, eps64, table64, noise64 = doubled(x, eps, table, noise)
    truth = ddim_step_reference(x64, eps64, table64, k, noise64)
    plain = ddim_step_reference(x, eps.float(), table, k, noise)
    out = ddim_step(x, eps, table, k, noise)
    assert out.dtype == torch.float32
    assert not out.isnan().any()
    scale = truth.abs().max().item()
    budget = 2 * (plain - truth).abs().max().item() + FLOOR * max(1.0, scale)
    assert (out - truth).abs().max().item() <= budget


@pytest.mark.parametrize("with_noise", [False, True], ids=["deterministic", "noise"])
@pytest.mark.parametrize("eps_dtype", EPS_DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 17, 5), (1, 1, 1, 1), (1, 3, 33, 41)], ids=str)
def test_ddim_step_is_as_good_as_torch(shape: tuple[int, ...], eps_dtype: Any, with_noise: bool) -> None:
    noise = draw(shape, seed=2) if with_noise else None
    assert_as_good_as_torch(draw(shape), draw(shape, seed=1).to(eps_dtype), coefficients(), 4, noise)


@pytest.mark.parametrize("k", range(10))
def test_ddim_step_reads_its_row(k: int) -> None:
    shape = (1, 3, 8, 8)
    assert_as_good_as_torch(draw(shape), draw(shape, seed=1), coefficients(), k, draw(shape, seed=2))


@pytest.mark.parametrize("scale", [1e-3, 1e4], ids=["small", "large"])
def test_ddim_step_of_a_large_mean(scale: float) -> None:
    shape = (1, 3, 9, 11)
    assert_as_good_as_torch(draw(shape, scale=scale, mean=1e3), draw(shape, mean=5.0, seed=1), coefficients(), 2, None)


def test_ddim_step_equals_the_sampler_in_numpy() -> None:
    shape, tables = (1, 3, 8, 8), schedule(eta=1.0)
    x, eps, noise = draw(shape), draw(shape, seed=1), draw(shape, seed=2)
    expected = ddim_step_in_numpy(x.cpu().numpy(), eps.cpu().numpy(), tables, 3, noise.cpu().numpy())
    np.testing.assert_allclose(
        ddim_step(x, eps, coefficients(), 3, noise).cpu().numpy(), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("wrong", range(5), ids=["signal", "noise_level", "x0", "eps", "sigma"])
def test_ddim_step_shows_a_wrong_coefficient(wrong: int) -> None:
    shape = (1, 3, 8, 8)
    table = coefficients()
    table[4, wrong] *= 1.001
    x, eps, noise = draw(shape), draw(shape, seed=1), draw(shape, seed=2)
    x64, eps64, table64, noise64 = doubled(x, eps, coefficients(), noise)
    right = ddim_step_reference(x64, eps64, table64, 4, noise64)
    assert (ddim_step(x, eps, table, 4, noise) - right).abs().max().item() > 10 * FLOOR


@pytest.mark.parametrize("where", ["x", "eps"])
def test_ddim_step_keeps_nan(where: str) -> None:
    tensors = {"x": draw((1, 3, 4, 4)), "eps": draw((1, 3, 4, 4), seed=1)}
    tensors[where][0, 1, 2, 3] = float("nan")
    out = ddim_step(tensors["x"], tensors["eps"], coefficients(), 0, None)
    assert out.isnan().nonzero().tolist() == [[0, 1, 2, 3]]


def test_ddim_step_clips_infinity() -> None:
    x = draw((1, 3, 4, 4))
    x[0, 0, 0, 0] = float("inf")
    assert ddim_step(x, draw((1, 3, 4, 4), seed=1), coefficients(), 0, None).isfinite().all()


def test_ddim_step_leaves_its_inputs_alone() -> None:
    x, eps, noise = draw((1, 3, 4, 4)), draw((1, 3, 4, 4), seed=1), draw((1, 3, 4, 4), seed=2)
    copies = [tensor.clone() for tensor in (x, eps, noise)]
    ddim_step(x, eps, coefficients(), 0, noise)
    assert all(torch.equal(a, b) for a, b in zip((x, eps, noise), copies, strict=True))


def test_ddim_step_of_nothing() -> None:
    assert ddim_step(draw((0, 3, 4, 4)), draw((0, 3, 4, 4)), coefficients(), 0, None).shape == (0, 3, 4, 4)


def bad_arguments() -> list[Any]:
    x, table = torch.zeros(1, 3, 4, 4), torch.ones(10, 5)
    turned = torch.zeros(1, 3, 4, 4).transpose(2, 3)
    cases = {
        "x in fp16": ((x.half(), x, table, 0, None), TypeError, "expected x in torch.float32, got torch.float16"),
        "eps in fp64": ((x, x.double(), table, 0, None), TypeError, "expected eps in torch.float32 or"),
        "noise in fp16": ((x, x, table, 0, x.half()), TypeError, "expected noise in torch.float32"),
        "table in fp64": ((x, x, table.double(), 0, None), TypeError, "expected coefficients in torch.float32"),
        "eps of another shape": ((x, x[:, :2], table, 0, None), ValueError, "expected eps (1, 3, 4, 4) on cpu as x is"),
        "noise of another shape": ((x, x, table, 0, x[..., :2]), ValueError, "expected noise (1, 3, 4, 4)"),
        "four coefficients": ((x, x, table[:, :4], 0, None), ValueError, "expected coefficients (S, 5), got (10, 4)"),
        "step too large": ((x, x, table, 10, None), ValueError, "expected a step k from 0 to 9, got 10"),
        "step below 0": ((x, x, table, -1, None), ValueError, "expected a step k from 0 to 9, got -1"),
        "x not contiguous": ((turned, x, table, 0, None), ValueError, "x is not contiguous"),
        "table elsewhere": ((x, x, table.to("meta"), 0, None), ValueError, "coefficients are on meta, x on cpu"),
    }
    return [pytest.param(*case, id=name) for name, case in cases.items()]


@pytest.mark.parametrize(("arguments", "error", "message"), bad_arguments())
def test_ddim_step_refuses(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        ddim_step(*arguments)
    assert message in str(caught.value)


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("eps_dtype", EPS_DTYPES, ids=["fp32", "fp16", "bf16"])
def test_ddim_step_on_the_gpu(eps_dtype: Any) -> None:
    assert DEVICE == "cuda"
    shape = (4, 3, 512, 509)
    assert_as_good_as_torch(draw(shape), draw(shape, seed=1).to(eps_dtype), coefficients(), 4, draw(shape, seed=2))

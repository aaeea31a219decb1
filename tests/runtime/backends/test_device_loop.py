"""The loop on the device against the loop on the host, with a device and an engine in numpy."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from saishiki.runtime.backends.device import table_rows
from saishiki.runtime.backends.device_loop import MAX_PLANS, DeviceLoop, runs_on_device
from saishiki.runtime.backends.host_loop import run_loop_on_host
from saishiki.runtime.backends.loop_plan import loop_program
from saishiki.runtime.backends.protocol import no_progress
from saishiki.runtime.samplers import Parameterisation, Solver, solver_for
from saishiki.runtime.signature import Array, Signature, TensorSpec


def loop_on(fakes: Any, device: Any, *, capturable: bool = True, slots: int = 1) -> DeviceLoop:
    engines: dict[tuple[Any, ...], Any] = {}

    def engine_at(sizes: Any, use: Any) -> Any:
        key = tuple(sorted(sizes.items()))
        if key not in engines:
            engines[key] = fakes.engine(device, sizes, capturable=capturable, slots=slots)
        return engines[key]

    return DeviceLoop(device, fakes.module(slots).signature, engine_at)


def on_host(fakes: Any, loop: Any) -> Array:
    return run_loop_on_host(fakes.module(loop.solver.slots), loop, no_progress)


def assert_same(result: Array, expected: Array) -> None:
    """Equal but for rounding: the table holds quotients in fp32 where the host divides."""
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def progress(k: int, x: Array | None) -> None:
    assert x is None


def test_table_rows_begin_at_multiples_of_256_bytes() -> None:
    rows = table_rows(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert rows.shape == (2, 256)
    np.testing.assert_array_equal(rows[1].view(np.float32), [3, 4, 5] + [0] * 61)


def test_table_rows_without_padding_are_not_copied() -> None:
    array = np.zeros((3, 64), np.float32)
    assert np.shares_memory(table_rows(array), array)


@pytest.mark.parametrize("chunk", [None, 1, 3], ids=["whole", "step by step", "chunks of 3"])
@pytest.mark.parametrize("eta", [0.0, 1.0], ids=["deterministic", "noise"])
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 5, 7)], ids=str)
@pytest.mark.parametrize("steps", [1, 4])
def test_loop_equals_the_host_loop(
    fakes: Any, steps: int, shape: tuple[int, ...], eta: float, chunk: int | None
) -> None:
    device = fakes.device()
    loop = fakes.draw_loop(steps=steps, eta=eta, shape=shape)
    device_loop = loop_on(fakes, device)
    result = device_loop.run(loop, no_progress, chunk=chunk)
    assert_same(result, on_host(fakes, loop))
    assert device_loop.captured is True
    assert device.log.count("capture") == device.log.count("replay") == -(-steps // (chunk or steps))


GAMMAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).astype(np.float32)


def solver(sampler: str, *guidance: float, steps: int = 5, prediction: Any = "v") -> Solver:
    how = Parameterisation(prediction, guidance)
    return solver_for(sampler, scheduler="Automatic", steps=steps, alphas_cumprod=GAMMAS, how=how)


@pytest.mark.parametrize("chunk", [None, 1], ids=["whole", "step by step"])
@pytest.mark.parametrize("guidance", [(), (4.0,), (4.0, 1.5)], ids=str)
@pytest.mark.parametrize("sampler", ["diffuser_dpm", "diffuser_ddim", "DPM++ 2M", "DPM++ 3M SDE", "Euler", "Euler a"])
def test_loop_of_any_table_equals_the_host_loop(
    fakes: Any, sampler: str, guidance: tuple[float, ...], chunk: int | None
) -> None:
    of = solver(sampler, *guidance)
    device_loop = loop_on(fakes, fakes.device(), slots=of.slots)
    for seed in range(2):  # the second run begins with what the first has left behind
        loop = fakes.draw_loop(solver=of, shape=(2, 3, 4, 6), seed=seed)
        result = device_loop.run(loop, no_progress, chunk=chunk)
        np.testing.assert_allclose(result, on_host(fakes, loop), rtol=1e-5, atol=1e-4)
        loop.noise is None or loop.noise.fill(0)
        assert loop.noise is None or np.abs(result - on_host(fakes, loop)).max() > 1e-2
    assert len(device_loop._plans) == 1


def test_loop_of_another_solver_is_another_plan(fakes: Any) -> None:
    device_loop = loop_on(fakes, fakes.device())
    for sampler in ("diffuser_ddim", "diffuser_dpm", "DPM++ 3M SDE", "Euler"):
        loop = fakes.draw_loop(solver=solver(sampler))
        np.testing.assert_allclose(device_loop.run(loop, no_progress), on_host(fakes, loop), rtol=1e-5, atol=1e-4)
    # diffuser_ddim's x is the model's input itself; the others differ in history and noise.
    assert len(device_loop._plans) == 4


def test_loop_in_one_plan_follows_the_solver(fakes: Any) -> None:
    device_loop = loop_on(fakes, fakes.device(), slots=2)
    for sampler, scale in (("DPM++ 2M", 4.0), ("diffuser_dpm", 4.0), ("diffuser_dpm", 2.0)):
        loop = fakes.draw_loop(solver=solver(sampler, scale), shape=(2, 3, 4, 6))
        np.testing.assert_allclose(device_loop.run(loop, no_progress), on_host(fakes, loop), rtol=1e-5, atol=1e-4)
    assert len(device_loop._plans) == 1


def test_loop_takes_rows_of_each_picture(fakes: Any) -> None:
    loop = fakes.draw_loop()
    each = replace(loop, per_step={"time": np.repeat(loop.per_step["time"], 2, axis=1)})
    device_loop = loop_on(fakes, fakes.device())
    np.testing.assert_array_equal(device_loop.run(each, no_progress), device_loop.run(loop, no_progress))


@pytest.mark.parametrize("chunk", [None, 1, 3], ids=["whole", "step by step", "chunks of 3"])
def test_loop_of_phases_equals_the_host_loop(fakes: Any, chunk: int | None) -> None:
    device = fakes.device()
    device_loop, loop = loop_on(fakes, device), fakes.draw_loop(steps=6)
    phases = (1, 1, 0, 0, 0, 1)
    for seed in range(2):  # the second run must not begin with what the first has ended with
        other = {"condition": fakes.draw_loop(seed=7 + seed).x}
        windows = replace(loop, constants=(*loop.constants, other), phases=phases)
        result = device_loop.run(windows, no_progress, chunk=chunk)
        assert_same(result, on_host(fakes, windows))
        assert np.abs(result - on_host(fakes, loop)).max() > 1e-3
    assert_same(device_loop.run(loop, no_progress, chunk=chunk), on_host(fakes, loop))
    assert device_loop.captured is True


def test_loop_of_phases_uploads_what_differs_between_them(fakes: Any) -> None:
    device, loop = fakes.device(), fakes.draw_loop(steps=4, eta=0.0)
    device_loop = loop_on(fakes, device)
    same = replace(loop, constants=loop.constants * 2, phases=(0, 0, 1, 1))
    other = replace(same, constants=(*loop.constants, {"condition": -loop.x}))
    uploads = []
    for run in (same, same, other):
        device.log.clear()
        device_loop.run(run, no_progress)
        uploads.append(sum(line.startswith("upload") for line in device.log))
        assert device.log.count("replay") == 2
    # x and the condition; the tables only in the first run; and the other phase's condition.
    assert uploads[1:] == [2, 3]


def test_loop_refuses_phases_of_other_sizes(fakes: Any) -> None:
    loop = fakes.draw_loop(steps=4)
    small = {"condition": loop.x[:1]}
    with pytest.raises(ValueError, match="expected condition: float32"):
        loop_on(fakes, fakes.device()).run(
            replace(loop, constants=(*loop.constants, small), phases=(0, 0, 1, 1)), no_progress
        )


def test_loop_refuses_phases_of_other_tokens(fakes: Any) -> None:
    loop = fakes.draw_loop(steps=2)
    state, _, time = fakes.signature.inputs
    key = TensorSpec("condition", "float32", ("batch", "tokens"))
    signature = Signature((state, key, time), fakes.signature.outputs, {})
    device_loop = DeviceLoop(fakes.device(), signature, lambda sizes, changing: None)  # type: ignore
    keys = tuple({"condition": np.zeros((2, tokens), np.float32)} for tokens in (4, 8))
    with pytest.raises(ValueError, match=r"expected constants of the sizes .*'tokens': 4.* in every phase"):
        device_loop.run(replace(loop, constants=keys, phases=(0, 1)), no_progress)


def test_loop_that_the_device_cannot_run_alone(fakes: Any) -> None:
    heun = fakes.draw_loop(solver=solver("Heun"))
    assert (runs_on_device(fakes.draw_loop()), runs_on_device(heun)) == (True, False)
    with pytest.raises(ValueError, match="Heun has no table, so it cannot run on the device alone; run it by the host"):
        loop_on(fakes, fakes.device()).run(heun, no_progress)


def test_loop_refuses_a_prediction_of_other_slots(fakes: Any) -> None:
    loop = fakes.draw_loop(solver=solver("Euler", 4.0), shape=(2, 3, 4, 6))
    loop = replace(loop, per_step={"time": loop.per_step["time"][..., :13]})
    with pytest.raises(ValueError, match=r"expected a prediction \(4, 3, 4, 6\) for 2 guidance slots, got eps"):
        loop_on(fakes, fakes.device()).run(loop, no_progress)


def test_loop_refuses_slots_that_are_not_aligned(fakes: Any) -> None:
    loop = fakes.draw_loop(solver=solver("Euler", 4.0), shape=(1, 3, 5, 7))
    with pytest.raises(ValueError, match="expected x of a multiple of 16 numbers with guidance"):
        loop_on(fakes, fakes.device(), slots=2).run(loop, no_progress)


def test_loop_shows_a_step_left_out(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_last = lambda steps: loop_program(steps)[:-1]  # noqa: E731
    monkeypatch.setattr("saishiki.runtime.backends.loop_plan.loop_program", without_last)
    loop = fakes.draw_loop()
    result = loop_on(fakes, fakes.device()).run(loop, no_progress)
    assert np.abs(result - on_host(fakes, loop)).max() > 1e-3


def test_loop_replays_with_new_contents(fakes: Any) -> None:
    device = fakes.device()
    device_loop = loop_on(fakes, device)
    for seed in range(3):
        loop = fakes.draw_loop(seed=seed)
        assert_same(device_loop.run(loop, no_progress), on_host(fakes, loop))
    assert device.log.count("capture") == 1
    assert device.log.count("replay") == 3


def test_loop_leaves_its_input_alone(fakes: Any) -> None:
    loop = fakes.draw_loop()
    before = loop.x.copy()
    loop_on(fakes, fakes.device()).run(loop, no_progress)
    np.testing.assert_array_equal(loop.x, before)


def test_loop_uploads_tables_once(fakes: Any) -> None:
    device, loop = fakes.device(), fakes.draw_loop(steps=4)
    device_loop = loop_on(fakes, device)
    device_loop.run(loop, no_progress)
    device.log.clear()
    device_loop.run(loop, no_progress)
    image, noise = loop.x.nbytes, 4 * 1024  # a row of noise is padded to 1024 bytes
    assert [line for line in device.log if line.startswith("upload")] == [
        f"upload {image}",
        f"upload {image}",
        f"upload {noise}",
    ]


def test_loop_follows_a_changed_schedule(fakes: Any) -> None:
    """Same sizes and steps, so the same graphs; eta and the rows of the timestep differ."""
    device_loop = loop_on(fakes, fakes.device())
    for eta, seed in ((1.0, 0), (0.5, 0), (0.5, 1)):
        loop = fakes.draw_loop(eta=eta, seed=seed)
        assert_same(device_loop.run(loop, no_progress), on_host(fakes, loop))


def test_loop_follows_a_table_changed_in_place(fakes: Any) -> None:
    device_loop, loop = loop_on(fakes, fakes.device()), fakes.draw_loop()
    device_loop.run(loop, no_progress)
    loop.per_step["time"][:, 0, 2] *= 1.5
    assert_same(device_loop.run(loop, no_progress), on_host(fakes, loop))


def test_loop_reports_every_step_in_order(fakes: Any) -> None:
    seen: list[tuple[int, Array | None]] = []
    loop_on(fakes, fakes.device()).run(fakes.draw_loop(steps=4), lambda k, x: seen.append((k, x)))
    assert seen == [(0, None), (1, None), (2, None), (3, None)]


def test_loop_enqueues_the_next_chunk_before_it_waits(fakes: Any) -> None:
    device = fakes.device()
    loop_on(fakes, device).run(fakes.draw_loop(steps=3), progress)
    order = [line for line in device.log if line in ("replay", "mark", "wait")]
    assert order == ["replay", "mark", "replay", "mark", "wait", "replay", "mark", "wait", "wait"]


def test_loop_without_progress_is_one_graph(fakes: Any) -> None:
    device = fakes.device()
    loop_on(fakes, device).run(fakes.draw_loop(steps=4), no_progress)
    assert device.log.count("replay") == 1


def test_run_timed_is_one_graph_between_two_marks_without_copies(fakes: Any) -> None:
    device, loop = fakes.device(), fakes.draw_loop(steps=4)
    device_loop = loop_on(fakes, device)
    x, _ = device_loop.run_timed(loop)
    np.testing.assert_array_equal(x, device_loop.run(loop, no_progress))
    device.log.clear()
    again, engine_ms = device_loop.run_timed(loop)
    np.testing.assert_array_equal(again, x)
    first, last = device.log.index("mark"), len(device.log) - 1 - device.log[::-1].index("mark")
    between = device.log[first + 1 : last]
    assert engine_ms == len(between)
    assert between.count("replay") == 1
    assert [line for line in between if line.startswith(("upload", "download"))] == []
    assert device.log[last + 1 :] == ["download"]


def test_loop_ends_at_an_exception(fakes: Any) -> None:
    device = fakes.device()
    device_loop, loop = loop_on(fakes, device), fakes.draw_loop(steps=4)

    def cancel(k: int, x: Array | None) -> None:
        raise KeyboardInterrupt(k)

    with pytest.raises(KeyboardInterrupt, match="0"):
        device_loop.run(loop, cancel)
    assert device.log.count("replay") == 2  # the first step, and the one under way behind it
    assert_same(device_loop.run(loop, progress), on_host(fakes, loop))


def test_loop_of_an_engine_that_cannot_be_captured(fakes: Any, caplog: pytest.LogCaptureFixture) -> None:
    device, loop = fakes.device(), fakes.draw_loop()
    device_loop = loop_on(fakes, device, capturable=False)
    with caplog.at_level(logging.WARNING):
        result = device_loop.run(loop, no_progress)
    assert_same(result, on_host(fakes, loop))
    assert device_loop.captured is False
    assert "capture" not in device.log
    assert "cannot be recorded into a CUDA graph" in caplog.text


def test_loop_keeps_few_plans(fakes: Any) -> None:
    device_loop = loop_on(fakes, fakes.device())
    for steps in range(1, MAX_PLANS + 4):
        loop = fakes.draw_loop(steps=steps, shape=(1, 3, 2, 2))
        assert_same(device_loop.run(loop, no_progress), on_host(fakes, loop))
    assert len(device_loop._plans) == MAX_PLANS


def test_loop_plans_anew_for_a_new_engine(fakes: Any) -> None:
    """Where the module has dropped an engine and made another, the graphs of the first are of no use."""
    device, loop = fakes.device(), fakes.draw_loop()
    device_loop = DeviceLoop(device, fakes.signature, lambda sizes, changing: fakes.engine(device, sizes))
    for _ in range(2):
        assert_same(device_loop.run(loop, no_progress), on_host(fakes, loop))
    assert device.log.count("capture") == 2


def test_loop_refuses_noise_in_fp64(fakes: Any) -> None:
    loop = fakes.draw_loop()
    with pytest.raises(ValueError, match="expected noise in float32, got float64"):
        loop_on(fakes, fakes.device()).run(replace(loop, noise=loop.noise.astype(np.float64)), no_progress)


def test_loop_refuses_a_constant_of_another_shape(fakes: Any) -> None:
    loop = fakes.draw_loop()
    loop = replace(loop, constants=({"condition": loop.x[:, :2]},))
    with pytest.raises(ValueError, match="expected condition: float32"):
        loop_on(fakes, fakes.device()).run(loop, no_progress)


def test_loop_refuses_a_prediction_in_fp16(fakes: Any) -> None:
    signature = fakes.signature
    half = (TensorSpec("eps", "float16", signature.outputs[0].dims),)
    device_loop = DeviceLoop(fakes.device(), Signature(signature.inputs, half, {}), lambda sizes, changing: None)  # type: ignore
    with pytest.raises(ValueError, match="expected state and prediction in float32"):
        device_loop.run(fakes.draw_loop(), no_progress)


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("eta", [0.0, 1.0], ids=["deterministic", "noise"])
@pytest.mark.parametrize("chunk", [None, 1], ids=["whole", "step by step"])
def test_loop_on_the_gpu_equals_the_host_loop(fakes: Any, eta: float, chunk: int | None) -> None:
    from saishiki.runtime.backends.cuda import CudaDevice

    device = CudaDevice(0)
    device_loop = loop_on(fakes, device)
    for seed in range(2):
        loop = fakes.draw_loop(steps=10, eta=eta, shape=(2, 3, 64, 61), seed=seed)
        result = device_loop.run(loop, no_progress, chunk=chunk)
        np.testing.assert_allclose(result, on_host(fakes, loop), rtol=1e-4, atol=1e-5)
    assert device_loop.captured is True
    device_loop.close()
    device.close()


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_gpu")
@pytest.mark.parametrize("guidance", [(), (4.0,), (4.0, 1.5)], ids=str)
@pytest.mark.parametrize("sampler", ["diffuser_dpm", "diffuser_ddim", "DPM++ 3M SDE"])
def test_loop_of_any_table_on_the_gpu_equals_the_host_loop(
    fakes: Any, sampler: str, guidance: tuple[float, ...]
) -> None:
    from saishiki.runtime.backends.cuda import CudaDevice

    of, device = solver(sampler, *guidance, steps=10), CudaDevice(0)
    device_loop = loop_on(fakes, device, slots=of.slots)
    for seed in range(2):
        loop = fakes.draw_loop(solver=of, shape=(2, 3, 64, 61), seed=seed)
        result = device_loop.run(loop, no_progress)
        np.testing.assert_allclose(result, on_host(fakes, loop), rtol=1e-4, atol=1e-3)
    assert device_loop.captured is True
    device_loop.close()
    device.close()

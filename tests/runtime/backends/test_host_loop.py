from dataclasses import replace

import numpy as np
import pytest

from saishiki.runtime.backends import host_loop
from saishiki.runtime.backends.host_loop import run_loop_on_host, run_loop_on_host_timed
from saishiki.runtime.backends.protocol import no_progress


class Recording:
    """The fakes' module, remembering what it was called with."""

    def __init__(self, module):
        self.module, self.signature, self.calls = module, module.signature, []

    def __call__(self, **inputs):
        self.calls.append(inputs)
        return self.module(**inputs)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_run_loop_on_host_is_the_solver_around_the_module(fakes, eta):
    loop, module = fakes.draw_loop(steps=4, eta=eta), Recording(fakes.module())

    def network(x, e):
        time = np.repeat(loop.per_step["time"][e], len(x), axis=0)
        return fakes.module()(noisy=x, condition=loop.constants[0]["condition"], time=time)["eps"]

    result = run_loop_on_host(module, loop, no_progress)
    np.testing.assert_array_equal(result, loop.solver.sample(network, loop.x, loop.noise))
    assert result.dtype == np.float32


def test_run_loop_on_host_hands_every_step_its_row(fakes):
    loop, module, seen = fakes.draw_loop(steps=3), Recording(fakes.module()), []
    result = run_loop_on_host(module, loop, lambda k, x: seen.append((k, x)))
    assert [k for k, _ in seen] == [0, 1, 2]
    np.testing.assert_array_equal(module.calls[0]["noisy"], loop.x)
    for k, call in enumerate(module.calls):
        np.testing.assert_array_equal(call["time"], np.repeat(loop.per_step["time"][k], len(loop.x), axis=0))
        assert call["condition"] is loop.constants[0]["condition"]
        if k:
            np.testing.assert_array_equal(call["noisy"], seen[k - 1][1])
    np.testing.assert_array_equal(result, seen[-1][1])


def test_an_error_in_on_step_ends_the_loop(fakes):
    loop, module = fakes.draw_loop(steps=5), Recording(fakes.module())

    def stop(k, x):
        if k == 1:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        run_loop_on_host(module, loop, stop)
    assert len(module.calls) == 2


def test_run_loop_on_host_takes_the_constants_of_each_phase(fakes):
    loop, module = fakes.draw_loop(steps=4), Recording(fakes.module())
    (first,), second = loop.constants, {"condition": -loop.x}
    result = run_loop_on_host(module, replace(loop, constants=(first, second), phases=(0, 1, 1, 0)), no_progress)
    taken = [call["condition"] for call in module.calls]
    assert [condition is first["condition"] for condition in taken] == [True, False, False, True]
    assert np.abs(result - run_loop_on_host(fakes.module(), loop, no_progress)).max() > 1e-3


def test_run_loop_on_host_takes_rows_of_each_picture(fakes):
    loop, module = fakes.draw_loop(steps=3, shape=(2, 3, 5, 7)), Recording(fakes.module())
    rows = np.repeat(loop.per_step["time"], 2, axis=1)
    run_loop_on_host(module, replace(loop, per_step={"time": rows}), no_progress)
    for e, call in enumerate(module.calls):
        np.testing.assert_array_equal(call["time"], rows[e])


def test_a_loop_must_have_the_noise_that_its_solver_draws(fakes):
    loop = fakes.draw_loop(steps=4, shape=(2, 3, 5, 7))
    with pytest.raises(ValueError, match="4 steps of ddim need 4 noises, got none"):
        replace(loop, noise=None)
    with pytest.raises(
        ValueError, match=r"expected noise \(4, 2, 3, 5, 7\), one for every draw, got \(3, 2, 3, 5, 7\)"
    ):
        replace(loop, noise=loop.noise[1:])


def test_a_loop_must_have_rows_for_every_evaluation(fakes):
    loop = fakes.draw_loop(steps=4, shape=(2, 3, 5, 7))
    rows = loop.per_step["time"]
    with pytest.raises(ValueError, match="expected 4 rows of time, one per evaluation, got 2"):
        replace(loop, per_step={"time": rows[:2]})
    with pytest.raises(ValueError, match=r"expected time \(E, 1 or 2, \.\.\.\), got \(4, 3, 13\)"):
        replace(loop, per_step={"time": np.repeat(rows, 3, axis=1)})


@pytest.mark.parametrize(
    ("sets", "phases", "message"),
    [
        (0, (), "expected one set of constants for each phase, got none"),
        (2, (), "expected phases, because there are 2 sets of constants; got none"),
        (2, (0, 1, 0), r"expected 4 phases below 2, got \(0, 1, 0\)"),
        (2, (0, 1, 2, 0), r"expected 4 phases below 2, got \(0, 1, 2, 0\)"),
    ],
)
def test_a_loop_must_have_a_phase_for_every_evaluation(fakes, sets, phases, message):
    loop = fakes.draw_loop(steps=4)
    with pytest.raises(ValueError, match=message):
        replace(loop, constants=loop.constants * sets, phases=phases)


def test_run_loop_on_host_timed_tells_the_modules_time_from_its_own(fakes, monkeypatch):
    loop, now = fakes.draw_loop(steps=4), [0.0]
    monkeypatch.setattr(host_loop, "perf_counter", lambda: now[0])

    class Slow(Recording):
        def __call__(self, **inputs):
            now[0] += 0.010
            return super().__call__(**inputs)

        def __getattribute__(self, name):
            now[0] += 0.005 if name == "signature" else 0.0
            return super().__getattribute__(name)

    timed = run_loop_on_host_timed(Slow(fakes.module()), loop)
    np.testing.assert_array_equal(timed.x, run_loop_on_host(fakes.module(), loop, no_progress))
    assert timed.engine_ms == pytest.approx(40)
    assert timed.wall_ms == pytest.approx(45)
    assert timed.clock == "host"

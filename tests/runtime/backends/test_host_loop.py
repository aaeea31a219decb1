from dataclasses import replace

import numpy as np
import pytest

from saishiki.runtime.backends import host_loop
from saishiki.runtime.backends.host_loop import run_loop_on_host, run_loop_on_host_timed
from saishiki.runtime.backends.protocol import no_progress
from saishiki.runtime.samplers import sample_ddim


class Recording:
    """The fakes' module, remembering what it was called with."""

    def __init__(self, module):
        self.module, self.signature, self.calls = module, module.signature, []

    def __call__(self, **inputs):
        self.calls.append(inputs)
        return self.module(**inputs)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_run_loop_on_host_is_sample_ddim(fakes, eta):
    loop, module = fakes.draw_loop(steps=4, eta=eta), Recording(fakes.module())

    def denoise(x, k):
        time = np.repeat(loop.per_step["time"][k : k + 1], len(x), axis=0)
        return fakes.module()(noisy=x, condition=loop.constants["condition"], time=time)["eps"]

    result = run_loop_on_host(module, loop, no_progress)
    np.testing.assert_array_equal(result, sample_ddim(denoise, loop.x, loop.schedule, noise=loop.noise))
    assert result.dtype == np.float32


def test_run_loop_on_host_hands_every_step_its_row(fakes):
    loop, module, seen = fakes.draw_loop(steps=3), Recording(fakes.module()), []
    result = run_loop_on_host(module, loop, lambda k, x: seen.append((k, x)))
    assert [k for k, _ in seen] == [0, 1, 2]
    np.testing.assert_array_equal(module.calls[0]["noisy"], loop.x)
    for k, call in enumerate(module.calls):
        np.testing.assert_array_equal(call["time"], np.stack([loop.per_step["time"][k]] * len(loop.x)))
        assert call["condition"] is loop.constants["condition"]
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


def test_a_loop_must_have_the_noise_that_eta_asks_for(fakes):
    loop = fakes.draw_loop(steps=4, shape=(2, 3, 5, 7))
    with pytest.raises(ValueError, match="4 steps at eta above 0 need noise"):
        replace(loop, noise=None)
    with pytest.raises(
        ValueError, match=r"expected noise \(4, 2, 3, 5, 7\), one for every step, got \(3, 2, 3, 5, 7\)"
    ):
        replace(loop, noise=loop.noise[1:])


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

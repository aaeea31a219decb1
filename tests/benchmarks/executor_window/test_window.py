"""The window as on a GPU whose launches take half a millisecond: the rows are what the decision reads."""

import json
from typing import Any

import pytest
from battery import clock
from battery.part import Options
from executor_window import constants, convs, fused, norms, triton_convs
from executor_window.conv3x3 import TINY_TILE
from executor_window.decision import decide
from executor_window.layers import Conv, Layers, Norm

LAYERS = Layers(
    {Conv(8, 4, 32, 32, 3, residual=True): 2, Conv(4, 4, 7, 32, 1, residual=False): 1}, {Norm(8, 4, 32): 3}, {"pool": 4}
)


@pytest.fixture
def on_a_gpu(cudnn: Any, monkeypatch: pytest.MonkeyPatch) -> Options:
    """Tensors stay on the CPU, and the clock gives out half a millisecond for each graph."""

    def event_ms(run: clock.Run) -> float:
        run()
        return 0.5

    monkeypatch.setattr(Options, "device", "cpu")
    monkeypatch.setattr(clock, "_event_ms", event_ms)
    monkeypatch.setattr(clock, "captured", lambda run, options: run)
    monkeypatch.setattr(constants, "captured", lambda run, options: run)
    monkeypatch.setattr(clock, "WINDOW", 1)
    for module in (clock, convs, fused, norms, triton_convs):
        if hasattr(module, "synchronize"):
            monkeypatch.setattr(module, "synchronize", lambda options: None)
    for module in (convs, fused, norms, triton_convs):
        monkeypatch.setattr(module, "animediffusion_layers", lambda options: LAYERS)
    monkeypatch.setattr(triton_convs, "TILES", (TINY_TILE,))
    monkeypatch.setattr(convs, "each_us", lambda runs, options: clock.each_us(runs[:2], options, runs=2))
    monkeypatch.setattr(convs, "glance_us", lambda runs, options: clock.glance_us(runs[:2], options, runs=1))
    monkeypatch.setattr(norms, "each_us", lambda runs, options: clock.each_us(runs[:2], options, runs=2))
    return Options(dry_run=False)


def test_decide_reads_what_the_window_measures(on_a_gpu: Options) -> None:
    rows = {
        "window_constants": [constants._gap(on_a_gpu)],
        "window_convs": list(convs.measure(on_a_gpu)),
        "window_fused": list(fused.measure(on_a_gpu)),
        "window_triton": list(triton_convs.measure(on_a_gpu)),
        "window_norms": list(norms.measure(on_a_gpu)),
        "compiled": [{"what": "loop, compiled, one graph", "precision": "fp16", "p50_ms": 30.0}],
    }
    parts = json.loads(json.dumps({name: {"part": name, "rows": each} for name, each in rows.items()}))
    decision = decide(parts)
    launch_ms = 0.25  # two launches in a graph of half a millisecond
    assert decision["convolutions_ms"] == 10 * 3 * launch_ms
    assert set(decision["other_convolutions_ms"].values()) == {10 * 3 * launch_ms}
    assert decision["norms_ms"] == 10 * 3 * launch_ms
    assert decision["gaps_ms"] == 10 * 4 * 0.0025
    assert decision["plan_ms"] == 15.1
    values = [verdict["value"] for verdict in decision["verdicts"]]
    # The last two are of our engine, which the window does not run.
    assert values == [True, True, False, True, True, None, None]
    timed = [row for name in ("window_convs", "window_fused", "window_triton") for row in rows[name] if "error" in row]
    assert all(row["samples_us"] and row["tflops"] >= 0 and "red" not in row for row in timed)

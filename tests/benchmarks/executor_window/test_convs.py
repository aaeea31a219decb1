from dataclasses import replace
from typing import Any

import pytest
import torch
from battery.part import Options, Row
from executor_window import convs
from executor_window.convs import BEST, FIRST, TORCH, Check, cudnn_rows, layer_rows, measure, summary
from executor_window.cudnn_convs import open_session
from executor_window.layers import Conv, Layers, Norm
from executor_window.operands import RESIDUAL_BIAS, draw_operands

DRY_RUN = Options(dry_run=True)
CONV = Conv(4, 6, 7, 16, 3, residual=True)
LAYERS = Layers({CONV: 2, replace(CONV, channels_out=3, kernel=1, residual=False): 1}, {Norm(4, 6, 8): 3}, {"pool": 2})


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convs, "animediffusion_layers", lambda options: LAYERS)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times that are given out, one for each candidate or row."""
    us = [40.0, 10.0, 20.0, 30.0]
    monkeypatch.setattr(convs, "glance_us", lambda runs, options: us.pop(0) if us else None)
    monkeypatch.setattr(convs, "each_us", lambda runs, options: {"p50_us": 2.0})
    return us


def test_measure_without_cudnn_says_why_and_times_torch(no_cudnn: None) -> None:
    network, cudnn, *rows = measure(DRY_RUN)
    assert network == {"what": "network", **summary(LAYERS)}
    assert "cudnn-frontend is not installed; run: pip install" in cudnn["unavailable"]
    assert {row["engine"] for row in rows} == {TORCH}
    assert all(row["error"] <= row["budget"] for row in rows)
    assert [row.get("last", False) for row in rows] == [False, True, False, True]


def test_measure_runs_every_layer_plain_and_as_it_is(cudnn: Any) -> None:
    _, versions, *rows = measure(DRY_RUN)
    assert (versions["cudnn"], versions["frontend"]) == ("9.19.0", "1.22.1")
    found = {(row["layer"], row["variant"], row["engine"]) for row in rows}
    assert found == {
        (conv.name, variant, engine)
        for conv, own in zip(LAYERS.convs, ("residual + bias", "bias"), strict=True)
        for variant in (own, "plain")
        for engine in (FIRST, BEST, TORCH)
    }
    assert all(row["error"] <= row["budget"] and not row.get("red") for row in rows)
    assert not any("p50_us" in row for row in rows)


def test_measure_goes_on_behind_the_layers_that_are_whole(cudnn: Any) -> None:
    rows = list(measure(DRY_RUN))
    first_layer = [row for row in rows if row.get("layer") == rows[2]["layer"]]
    continued = list(measure(replace(DRY_RUN, earlier=tuple(rows[:2] + first_layer))))
    assert {row["layer"] for row in continued} == {row["layer"] for row in rows[2:]} - {rows[2]["layer"]}
    half = list(measure(replace(DRY_RUN, earlier=tuple(rows[:2] + first_layer[:-1]))))
    assert len(half) == len(rows) - 2


def test_cudnn_rows_takes_the_fastest_candidate_that_can_be_built(cudnn: Any, timed: list[float]) -> None:
    session = open_session(DRY_RUN)
    first, best = cudnn_rows(session, Check(CONV, RESIDUAL_BIAS, draw_operands(CONV.padded, "cpu", 2), DRY_RUN))
    assert (first["engine"], first["plan"]) == (FIRST, "eng0")
    assert (best["engine"], best["plan"]) == (BEST, "eng2")
    assert (best["candidates"], best["candidates_us"]) == (4, [40.0, None, 10.0, 20.0])
    assert first["tflops"] == pytest.approx(CONV.flops / 2.0 / 1e6, abs=0.1)


def test_cudnn_rows_where_the_first_choice_cannot_be_built(cudnn: Any, timed: list[float]) -> None:
    cudnn.first_fails = True
    session = open_session(DRY_RUN)
    first, _ = cudnn_rows(session, Check(CONV, RESIDUAL_BIAS, draw_operands(CONV.padded, "cpu", 2), DRY_RUN))
    assert first["plan"] == "eng2"


def test_layer_rows_of_a_wrong_convolution_are_red_and_have_no_times(cudnn: Any, timed: list[float]) -> None:
    cudnn.factor = 1.1
    rows = [row for row in layer_rows(CONV, 1, open_session(DRY_RUN), DRY_RUN) if row["engine"] != TORCH]
    assert len(rows) == 4
    assert all(row["red"] and "p50_us" not in row for row in rows)
    assert all(row["error"] == pytest.approx(0.1, rel=0.05) for row in rows)


def test_check_of_a_result_that_is_not_written_is_red() -> None:
    check = Check(CONV, RESIDUAL_BIAS, draw_operands(CONV.padded, "cpu", 1), DRY_RUN)
    row: Row = check.row([lambda: None])
    assert row["red"]
    assert row["error"] != row["error"]  # NaN


def test_layer_rows_where_cudnn_refuses_tell_its_first_line(cudnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise cudnn.cudnnGraphNotSupportedError("nothing for this\nmore")

    monkeypatch.setattr(convs, "plan_conv", refuse)
    rows = list(layer_rows(CONV, 1, open_session(DRY_RUN), DRY_RUN))
    assert [row.get("unavailable") for row in rows] == ["nothing for this", None] * 2


def test_summary_counts_every_layer_as_often_as_it_is_there() -> None:
    work = summary(LAYERS)
    assert (work["convolutions"], work["distinct"], work["norms"], work["other_launches"]) == (3, 2, 3, 2)
    assert work["gflop"] == round(sum(c.flops * n for c, n in LAYERS.convs.items()) / 1e9, 3)
    assert torch.get_num_threads() >= 1

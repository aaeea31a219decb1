from typing import Any

import pytest
from battery.part import Options, SkippedError
from executor_window import fused
from executor_window.fused import measure
from executor_window.layers import Conv, Layers

DRY_RUN = Options(dry_run=True)
LAYERS = Layers({Conv(4, 6, 16, 16, 3, residual=True): 2, Conv(2, 2, 16, 16, 3, residual=True): 1}, {}, {})


@pytest.fixture(autouse=True)
def _small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "animediffusion_layers", lambda options: LAYERS)


def test_measure_tries_three_candidates_of_each_variant_on_each_level(cudnn: Any) -> None:
    rows = list(measure(DRY_RUN))
    of_level = [row for row in rows if row["height"] == 4]
    assert len(rows) == 2 * len(of_level)
    assert [(row["variant"], row["plan"]) for row in of_level] == [
        ("residual + bias", "eng0"),
        *[("residual + bias + sums", f"eng{i}") for i in range(4)],
        *[("norm and SiLU before, residual + bias", f"eng{i}") for i in range(4)],
    ]
    refused = [row for row in rows if "unavailable" in row]
    assert {(row["plan"], row["unavailable"]) for row in refused} == {("eng1", "engine 1 is not for this device")}
    assert all(row["error"] <= row["budget"] for row in rows if row not in refused)


def test_measure_checks_the_sums(cudnn: Any) -> None:
    rows = [row for row in measure(DRY_RUN) if "sums_error" in row]
    assert len(rows) == 6
    assert all(row["sums_error"] < 1e-5 and not row["accumulates"] for row in rows)


def test_measure_of_wrong_sums_is_red_and_untimed(cudnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "sums_reference", lambda y: 2 * y.sum((0, 1)).expand(2, -1))
    monkeypatch.setattr("executor_window.convs.each_us", lambda runs, options: {"p50_us": 2.0})
    rows = [row for row in measure(DRY_RUN) if row["variant"] == "residual + bias + sums" and "unavailable" not in row]
    assert len(rows) == 6
    assert all(row["red"] and "p50_us" not in row for row in rows)


def test_measure_without_cudnn_is_skipped(no_cudnn: None) -> None:
    with pytest.raises(SkippedError, match="cudnn-frontend is not installed"):
        next(measure(DRY_RUN))


def test_measure_where_nothing_supports_a_variant_says_so(cudnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise cudnn.cudnnGraphNotSupportedError("No valid engine configs\nmore")

    monkeypatch.setattr(fused, "plan_conv", refuse)
    assert [row["unavailable"] for row in measure(DRY_RUN)] == ["No valid engine configs"] * 6

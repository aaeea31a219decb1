import pytest
from battery.part import Options
from executor_window import constants

DRY_RUN = Options(dry_run=True)


def test_constants_come_in_the_order_of_the_model_and_without_times() -> None:
    rows = list(constants.measure(DRY_RUN))
    assert [row["what"] for row in rows] == ["graph gap", "copy", "fp16 matrix product"]
    assert not any(name.startswith("p50") for row in rows for name in row)


def test_constants_of_times_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "latency", lambda run, options: {"p50_ms": 0.25})
    gap, copy, product = constants.measure(DRY_RUN)
    assert gap["us_each"] == 1.25
    assert copy["gb_per_s"] == pytest.approx(2 * 2**20 / 0.25e6, abs=0.1)
    assert product["tflops"] == pytest.approx(2 * 64**3 / 0.25e9, abs=0.1)

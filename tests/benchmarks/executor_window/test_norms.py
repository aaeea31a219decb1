from typing import Any

import pytest
from battery.part import Options
from executor_window import norms
from executor_window.layers import Layers, Norm

DRY_RUN = Options(dry_run=True)
LAYERS = Layers({}, {Norm(4, 4, 32): 2, Norm(4, 4, 64): 1}, {})


def test_norms_measure_the_commonest_of_each_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "animediffusion_layers", lambda options: LAYERS)
    monkeypatch.setattr(norms, "each_us", lambda runs, options: {"p50_us": 2.0})
    of_network, row = norms.measure(DRY_RUN)
    assert of_network["bytes_by_height"] == {4: 2 * Norm(4, 4, 32).nbytes + Norm(4, 4, 64).nbytes}
    assert (row["height"], row["channels"]) == (4, 32)
    assert row["error"] <= row["budget"]
    assert row["tb_per_s"] == round(Norm(4, 4, 32).nbytes / 2e6, 3)


def test_norms_of_a_wrong_kernel_are_red_and_untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Any = norms.group_norm_silu
    monkeypatch.setattr(norms, "group_norm_silu", lambda x, weight, bias, **how: 1.01 * right(x, weight, bias, **how))
    row = norms.norm_row(Norm(4, 4, 32), DRY_RUN)
    assert row["red"]
    assert row["error"] == pytest.approx(0.01, rel=0.1)

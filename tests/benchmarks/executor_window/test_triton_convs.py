import pytest
from battery.part import Options
from executor_window import triton_convs
from executor_window.layers import Conv, Layers

DRY_RUN = Options(dry_run=True)
LAYERS = Layers({Conv(4, 4, 32, 32, 3, residual=True): 1}, {}, {})


def test_triton_convs_pass_in_every_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_convs, "animediffusion_layers", lambda options: LAYERS)
    plain, sums, prologue = triton_convs.measure(DRY_RUN)
    assert [row["variant"] for row in (plain, sums, prologue)] == [
        "residual + bias",
        "residual + bias + sums",
        "norm and SiLU before, residual + bias",
    ]
    assert all(row["error"] <= row["budget"] for row in (plain, sums, prologue))
    assert sums["sums_error"] < 1e-5


def test_triton_convs_where_a_tile_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of resource: shared memory\nmore")

    monkeypatch.setattr(triton_convs, "animediffusion_layers", lambda options: LAYERS)
    monkeypatch.setattr(triton_convs, "conv3x3", fail)
    assert [row["unavailable"] for row in triton_convs.measure(DRY_RUN)] == ["out of resource: shared memory"] * 3

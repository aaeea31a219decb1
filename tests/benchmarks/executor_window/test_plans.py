from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from battery.part import Options, SkippedError
from executor_window import cpu_plans
from executor_window.cudnn_convs import open_session
from executor_window.layers import Conv, Layers
from executor_window.operands import BIAS, RESIDUAL_BIAS
from executor_window.plan_file import PlanFile, SavedPlan, read_plans, write_plans
from executor_window.plans import measure, properties_row

DRY_RUN = Options(dry_run=True)
LAYERS = Layers({Conv(4, 6, 7, 16, 3, residual=True): 2, Conv(2, 2, 16, 16, 1, residual=False): 1}, {}, {})
SAVED = SavedPlan(Conv(4, 6, 7, 16, 3, residual=True), RESIDUAL_BIAS, b"\x00plan")


@pytest.fixture
def plans(cudnn: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of the plans of a small network."""
    monkeypatch.setattr(cpu_plans, "animediffusion_layers", lambda options: LAYERS)
    assert cpu_plans.main(["-o", str(tmp_path / "new" / "plans.json"), "--sm", "89"]) == 0
    return tmp_path / "new" / "plans.json"


def test_write_plans_and_read_plans_agree(tmp_path: Path) -> None:
    file = PlanFile(90, {"cudnn": "9.19.0"}, (SAVED, replace(SAVED, variant=BIAS)))
    write_plans(file, tmp_path / "plans.json")
    assert read_plans(tmp_path / "plans.json") == file


@pytest.mark.parametrize("text", ["{", "[]", '{"sm": 90, "made_by": {}, "plans": [{"conv": {}}]}'])
def test_read_plans_of_another_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "plans.json").write_text(text)
    with pytest.raises(ValueError, match=r"holds no plans of executor_window/cpu_plans\.py .*; make it anew"):
        read_plans(tmp_path / "plans.json")


def test_cpu_plans_are_made_for_a_gpu_that_is_not_there(plans: Path, cudnn: Any) -> None:
    file = read_plans(plans)
    assert (file.sm, file.made_by) == (89, {"cudnn": "9.19.0", "frontend": "1.22.1"})
    assert [(saved.conv, saved.variant) for saved in file.plans] == [
        (conv, RESIDUAL_BIAS if conv.residual else BIAS) for conv in LAYERS.convs
    ]
    assert all(setup["sm_version"] == 89 and "handle" not in setup for setup in cudnn.setups)


def test_cpu_plans_without_cudnn_writes_nothing(
    no_cudnn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cpu_plans.main(["-o", str(tmp_path / "plans.json")]) == 1
    assert "error: cudnn-frontend is not installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_measure_runs_plans_that_were_read_back(plans: Path) -> None:
    about, *rows = measure(replace(DRY_RUN, plans=plans))
    assert (about["sm"], about["made_by"]["cudnn"], about["here"]["cudnn"]) == (89, "9.19.0", "9.19.0")
    assert [row["layer"] for row in rows] == [conv.name for conv in LAYERS.convs]
    assert all(row["error"] <= row["budget"] and row["plan_here"] == "eng0" for row in rows)


def test_measure_of_a_plan_that_does_not_load_here(cudnn: Any, tmp_path: Path) -> None:
    write_plans(PlanFile(90, {}, (SAVED,)), tmp_path / "plans.json")
    *_, row = measure(replace(DRY_RUN, plans=tmp_path / "plans.json"))
    assert row["layer"] == SAVED.conv.name
    assert row["unavailable"]


def test_measure_without_plans_is_skipped(cudnn: Any) -> None:
    with pytest.raises(SkippedError, match="needs --plans FILE, made by"):
        list(measure(DRY_RUN))


def test_properties_row_compares_with_the_device(cudnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = '{"multiProcessorCount": 114}'
    create = cudnn.create_device_properties
    monkeypatch.setattr(cudnn, "create_device_properties", lambda given: create(own if given == 0 else given))
    row = properties_row(open_session(DRY_RUN).cudnn, 9, 0)
    assert row["differ"]["multiProcessorCount"] == {"device": 114, "written": 132}
    assert properties_row(cudnn, 7, 5)["unavailable"] == "none are written down for sm75"

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_battery
import pytest
from battery.part import Part
from battery.parts import PARTS
from battery.results import IDENTITY, NAME
from gpu_battery import exit_status, main, print_decision, print_result

SCRIPT = Path(gpu_battery.__file__)
WINDOW = [
    "window_constants",
    "window_convs",
    "window_plans",
    "window_fused",
    "window_triton",
    "window_norms",
]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without one."""
    monkeypatch.setattr(gpu_battery, "gpu_name", lambda: "none")


def test_dry_run_measures_saves_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_gpu: None
) -> None:
    monkeypatch.setattr(gpu_battery, "sources_digest", lambda: "f" * 64)
    arguments = ["--dry-run", "-o", str(tmp_path), "--only", "window_constants,environment", "--commit", "abc"]
    assert main(arguments) == 0
    saved = json.loads((tmp_path / NAME).read_text())
    assert {name: saved[name] for name in IDENTITY} == {
        "schema": 2,
        "gpu": "none",
        "commit": "abc",
        "sources": "f" * 64,
        "dry_run": True,
    }
    assert [(part["part"], part["status"]) for part in saved["parts"]] == [
        ("environment", "ok"),
        ("window_constants", "ok"),
    ]
    assert [verdict["value"] for verdict in saved["decision"]["verdicts"]] == [None] * 7
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("done before") == 2
    assert json.loads((tmp_path / NAME).read_text())["parts"] == saved["parts"]


@pytest.mark.slow
def test_dry_run_runs_every_part_to_its_end(tmp_path: Path) -> None:
    # Minutes are for a GPU: a slow machine shall not leave parts out.
    command = [sys.executable, str(SCRIPT), "--dry-run", "--minutes", "60", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / NAME).read_text())["parts"]
    assert [part["part"] for part in parts] == list(PARTS)
    skipped = {part["part"]: part["why"] for part in parts if part["status"] == "skipped"}
    assert {part["status"] for part in parts} == {"ok", "skipped"}
    others = {"window_plans", "window_fused", "engines", "first_runs", "layers", "rtx_probe"}
    assert skipped.keys() <= {"cubins", "plan_triton"} | others
    assert not any(name.startswith(("p50", "samples")) for part in parts for row in part["rows"] for name in row)


def test_parts_begin_with_the_window_in_its_order() -> None:
    assert list(PARTS)[:7] == ["environment", *WINDOW]
    assert list(PARTS).index("graph") < list(PARTS).index("compiled")


def test_parts_of_the_window_fit_ten_minutes_with_torch_in_a_graph() -> None:
    first = [PARTS[name].limit_s for name in ("environment", *WINDOW, "graph")]
    assert sum(first) <= 600
    assert all(part.least_s <= part.limit_s for part in PARTS.values())


@pytest.mark.parametrize("name", list(PARTS))
def test_parts_are_where_the_table_says(name: str) -> None:
    assert callable(PARTS[name].load())
    assert PARTS[name].answers


def test_part_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        Part("battery.machine:nothing", 1, "").load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "ceilings"], "unknown parts ceilings; expected some of environment, window_constants"),
        (["--again", "eagre"], "unknown parts eagre"),
        (["--minutes", "0"], "expected --minutes above 0, got 0.0"),
        (["--bundle", "/nowhere/b"], "--bundle /nowhere/b does not exist"),
        (["--plans", "/nowhere/p"], "--plans /nowhere/p does not exist"),
    ],
)
def test_main_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_gpu: None
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--dry-run", "-o", str(tmp_path / "new"), *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_main_without_a_gpu_asks_for_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_gpu: None
) -> None:
    with pytest.raises(SystemExit):
        main(["-o", str(tmp_path / "new")])
    assert "nvidia-smi finds no GPU here; --dry-run" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_main_list_shows_all_parts_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_gpu: None
) -> None:
    head = {"schema": 2, "gpu": "none", "commit": "abc", "sources": gpu_battery.sources_digest(), "dry_run": False}
    text = json.dumps({**head, "parts": [{"part": "eager", "status": "timed out", "rows": []}]})
    (tmp_path / NAME).write_text(text)
    assert main(["--list", "-o", str(tmp_path), "--commit", "abc"]) == 0
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()] == list(PARTS)
    assert next(line for line in told.splitlines() if "timed out" in line).startswith("eager")
    assert main(["--list", "-o", str(tmp_path), "--commit", "another"]) == 0
    assert "timed out" not in capsys.readouterr().out
    assert (tmp_path / NAME).read_text() == text


class _Results:
    def __init__(self, *parts: dict[str, Any]) -> None:
        self.parts = {part["part"]: part for part in parts}


@pytest.mark.parametrize(
    ("status", "row", "expected"),
    [
        ("ok", {}, 0),
        ("skipped", {}, 0),
        ("not started", {}, 0),
        ("failed", {}, 1),
        ("timed out", {}, 1),
        ("ok", {"red": True}, 1),
        ("ok", {"red": False}, 0),
    ],
)
def test_exit_status(status: str, row: dict[str, Any], expected: int) -> None:
    results: Any = _Results({"part": "a", "status": status, "rows": [row]})
    assert exit_status(results, ["a", "never asked"]) == expected


def test_print_result_leaves_the_samples_to_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"what": "copy", "p50_ms": 1.23456, "samples_ms": [1.0], "n": 1}]
    print_result({"part": "a", "status": "failed", "seconds": 1.0, "words": "x\nlast\n", "rows": rows})
    assert capsys.readouterr().out == "== a: failed in 1.0 s ['last']\n   what copy, p50_ms 1.235\n"


def test_print_decision_says_what_is_undecided(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = [{"what": "stage 2", "value": None, "why": "no plan"}, {"what": "stage 4", "value": True, "why": "slow"}]
    print_decision({"plan_ms": None, "gaps_ms": 0.5, "verdicts": verdicts})
    told = capsys.readouterr().out
    assert "plan_ms: not measured" in told
    assert "gaps_ms: 0.5" in told
    assert "stage 2: undecided (no plan)" in told
    assert "stage 4: True (slow)" in told

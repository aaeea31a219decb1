from collections.abc import Mapping
from pathlib import Path

import pytest
from battery.part import Options, Part, Row
from battery.results import Results, open_results
from battery.run import AFTERMATH_S, Battery

SCRIPT = """
import json, sys
name, rows = sys.argv[sys.argv.index("--part") + 1], sys.argv[sys.argv.index("--rows") + 1]
had = open(rows).read().count("\\n") if __import__("os").path.exists(rows) else 0
with open(rows, "a") as file:
    print(json.dumps({"name": name, "had": had, "flags": sys.argv[1:-4]}), file=file)
if name == "breaks":
    sys.exit("broken")
"""
PARTS: Mapping[str, Part] = {
    "first": Part("m:f", 20, "one"),
    "breaks": Part("m:f", 20, "two"),
    "continues": Part("m:f", 20, "three", continues=True),
    "gpu": Part("m:f", 20, "four", needs_gpu="launches"),
    "long": Part("m:f", 500, "five", least_s=200),
}
HEAD = {"schema": 2, "gpu": "none", "commit": "abc", "sources": "def", "dry_run": True}


def _run(tmp_path: Path, names: list[str], **changes: object) -> tuple[Results, list[Row]]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    told: list[Row] = []
    results, _ = open_results(tmp_path / "out", HEAD, lambda parts: {"verdicts": []})
    settings: dict[str, object] = {
        "parts": PARTS,
        "script": script,
        "arguments": ["--flag"],
        "options": Options(dry_run=True),
        "again": frozenset(),
        "minutes": 1.0,
        "report": told.append,
    }
    Battery(**{**settings, **changes}).run(names, results)  # type: ignore[arg-type]
    return results, told


def test_run_leaves_out_what_is_done_and_repeats_what_failed(tmp_path: Path) -> None:
    results, _ = _run(tmp_path, ["first", "breaks"])
    assert [part["status"] for part in results.parts.values()] == ["ok", "failed"]
    assert results.parts["breaks"]["words"].strip() == "broken"
    assert results.parts["first"]["rows"] == [{"name": "first", "had": 0, "flags": ["--flag"]}]
    before = results.parts["first"]
    results, told = _run(tmp_path, ["first", "breaks"])
    assert [result["status"] for result in told] == ["done before", "failed"]
    assert results.parts["first"] == before


def test_run_again_measures_anew(tmp_path: Path) -> None:
    _run(tmp_path, ["first"])
    _, told = _run(tmp_path, ["first"], again=frozenset({"first"}))
    assert told[0]["status"] == "ok"


def test_run_hands_earlier_rows_to_a_part_that_continues_and_to_no_other(tmp_path: Path) -> None:
    row = {"name": "earlier"}
    results, _ = open_results(tmp_path / "out", HEAD, lambda parts: {"verdicts": []})
    for name in ("continues", "first"):
        results.keep({"part": name, "seconds": 1.0, "status": "timed out", "rows": [row]})
    results, _ = _run(tmp_path, ["continues", "first"])
    assert results.parts["continues"]["rows"] == [row, {"name": "continues", "had": 1, "flags": ["--flag"]}]
    assert [each["name"] for each in results.parts["first"]["rows"]] == ["first"]


def test_run_begins_no_part_that_does_not_fit_the_minutes(tmp_path: Path) -> None:
    results, _ = _run(tmp_path, ["long", "first"], minutes=1.0)
    assert results.parts["long"]["status"] == "not started"
    assert "needs 200 s, 5" in results.parts["long"]["why"]
    assert results.parts["first"]["status"] == "ok"
    results, _ = _run(tmp_path, ["long"], minutes=None)
    assert results.parts["long"]["status"] == "ok"


def test_run_limits_a_part_to_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    monkeypatch.setattr(
        "battery.run.attempts",
        lambda attempt: limits.append(attempt.limit_s) or iter([{"part": attempt.name, "status": "ok", "rows": []}]),
    )
    _run(tmp_path, ["first"], minutes=0.3)
    _run(tmp_path, ["breaks"], minutes=9.0)
    assert limits[0] == pytest.approx(18 - AFTERMATH_S, abs=2)
    assert limits[1] == 20


def test_run_of_a_dry_run_leaves_out_what_needs_a_gpu(tmp_path: Path) -> None:
    results, _ = _run(tmp_path, ["gpu"])
    assert results.parts["gpu"]["why"] == "needs a GPU: launches"

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from battery.part import Row
from battery.results import NAME, Results, open_results, read_parts

HEAD = {"schema": 2, "gpu": "nvidia-h200", "commit": "abc", "sources": "def", "dry_run": False}


def _decide(parts: Mapping[str, Row]) -> Row:
    return {"parts": len(parts), "verdicts": []}


def _result(name: str, status: str, rows: int) -> Row:
    return {"part": name, "seconds": 1.0, "status": status, "rows": [{"row": i} for i in range(rows)]}


def _opened(folder: Path, **changes: object) -> tuple[Results, str]:
    return open_results(folder, {**HEAD, **changes}, _decide)


def test_open_results_goes_on_with_the_parts_of_the_same_machine_and_sources(tmp_path: Path) -> None:
    first, found = _opened(tmp_path)
    assert found == f"begins {tmp_path / NAME}"
    first.keep(_result("a", "ok", 2))
    first.keep(_result("b", "timed out", 3))
    again, found = _opened(tmp_path)
    assert found == f"continues {tmp_path / NAME}"
    assert (again.is_done("a"), again.is_done("b"), again.is_done("c")) == (True, False, False)
    assert (again.earlier_rows("a"), len(again.earlier_rows("b")), again.earlier_rows("c")) == ([], 3, [])


@pytest.mark.parametrize("name", list(HEAD))
def test_open_results_puts_another_measurement_aside(tmp_path: Path, name: str) -> None:
    _opened(tmp_path)[0].keep(_result("a", "ok", 2))
    before = (tmp_path / NAME).read_text()
    results, found = _opened(tmp_path, **{name: "other"})
    assert f"differs ({name}) and is now gpu_battery." in found
    assert results.parts == {}
    (aside,) = tmp_path.iterdir()
    assert aside.read_text() == before


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"parts": [1]}'])
def test_open_results_puts_a_damaged_file_aside(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    results, found = _opened(tmp_path)
    assert results.parts == {}
    assert "differs (its text is no result)" in found
    assert [path.read_text() for path in tmp_path.iterdir()] == [text]


def test_keep_writes_the_whole_file_at_once(tmp_path: Path) -> None:
    results, _ = _opened(tmp_path)
    results.keep(_result("a", "running", 1))
    written = json.loads((tmp_path / NAME).read_text())
    assert {name: written[name] for name in HEAD} == HEAD
    assert written["decision"] == {"parts": 1, "verdicts": []}
    assert written["parts"] == [_result("a", "running", 1)]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_keep_leaves_the_rows_of_an_attempt_that_came_further(tmp_path: Path) -> None:
    results, _ = _opened(tmp_path)
    results.keep(_result("a", "timed out", 3))
    results.keep(_result("a", "failed", 1))
    assert len(results.parts["a"]["rows"]) == 3
    assert results.parts["a"]["last_attempt"]["status"] == "failed"
    results.keep(_result("a", "running", 3))
    assert results.parts["a"]["status"] == "running"
    results.keep(_result("a", "ok", 1))
    assert results.parts["a"] == _result("a", "ok", 1)


def test_read_parts_names_what_differs(tmp_path: Path) -> None:
    _opened(tmp_path)[0].keep(_result("a", "ok", 0))
    parts, different = read_parts(tmp_path / NAME, {**HEAD, "gpu": "none", "commit": "x"})
    assert list(parts) == ["a"]
    assert different == ["gpu", "commit"]

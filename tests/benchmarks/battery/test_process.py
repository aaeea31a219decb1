import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from battery import process
from battery.part import Options, Part, Row
from battery.process import Attempt, attempts, ending, read_rows, run_part


def _attempt(tmp_path: Path, script: str, limit_s: float = 20.0) -> Attempt:
    rows = tmp_path / "part.jsonl"
    command = [sys.executable, "-c", f"rows = open({str(rows)!r}, 'a', buffering=1)\n{script}"]
    return Attempt("part", command, dict(os.environ), rows, tmp_path / "part.log", limit_s)


def test_attempts_gives_rows_as_they_come(tmp_path: Path) -> None:
    script = "import time\nfor i in range(3):\n    print('{\"i\": %d}' % i, file=rows)\n    time.sleep(0.5)"
    *running, last = attempts(_attempt(tmp_path, script))
    assert {result["status"] for result in running} == {"running"}
    assert len(running) >= 2
    assert (last["part"], last["status"], last["rows"]) == ("part", "ok", [{"i": 0}, {"i": 1}, {"i": 2}])


def test_attempts_kills_a_part_at_its_limit_and_keeps_its_rows(tmp_path: Path) -> None:
    script = "import time\nprint('{\"i\": 0}', file=rows)\nprint('last words', flush=True)\ntime.sleep(60)"
    start = time.monotonic()
    *_, last = attempts(_attempt(tmp_path, script, limit_s=1.5))
    assert time.monotonic() - start < 10
    assert (last["status"], last["limit_s"], last["words"]) == ("timed out", 1.5, "last words\n")
    assert last["rows"] == [{"i": 0}]


def test_attempts_kills_what_the_part_started_too(tmp_path: Path) -> None:
    script = (
        "import subprocess, time\nchild = subprocess.Popen(['sleep', '60'])\n"
        "print('{\"pid\": %d}' % child.pid, file=rows)\ntime.sleep(60)"
    )
    *_, last = attempts(_attempt(tmp_path, script, limit_s=2.0))
    pid = last["rows"][0]["pid"]
    assert _eventually(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_attempts_of_a_part_that_crashes(tmp_path: Path) -> None:
    script = "import os\nprint('{\"i\": 0}', file=rows)\nprint('{\"half', end='', file=rows)\nos.abort()"
    *_, last = attempts(_attempt(tmp_path, script))
    assert (last["status"], last["returncode"], last["rows"]) == ("failed", -6, [{"i": 0}])


def test_attempts_that_the_caller_leaves_early_end_the_process(tmp_path: Path) -> None:
    script = "import os, time\nprint('{\"pid\": %d}' % os.getpid(), file=rows)\ntime.sleep(60)"
    running = attempts(_attempt(tmp_path, script))
    result: Row = next(running)
    while not result["rows"]:
        result = next(running)
    running.close()  # type: ignore[attr-defined]
    assert not _runs(result["rows"][0]["pid"])


def test_end_with_parent_ends_a_part_whose_battery_was_killed(tmp_path: Path) -> None:
    part = (
        "import os, time\nfrom battery.process import end_with_parent\nend_with_parent(0.05)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(60)"
    )
    battery = (
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {part!r}], process_group=0)\n"
        "time.sleep(60)"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(process.__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, "-c", battery], env=environ)
    try:
        pid = int(_eventually(lambda: _line(tmp_path / "pid")))
        assert _runs(pid)
    finally:
        parent.kill()
        parent.wait()
    assert _eventually(lambda: not _runs(pid))


def _line(path: Path) -> str:
    text = path.read_text() if path.exists() else ""
    return text if text.endswith("\n") else ""


def _eventually(happens: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := happens()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("code", "words", "expected"),
    [
        (0, "noise", {"status": "ok"}),
        (1, "x\nbattery.part.SkippedError: needs y\n", {"status": "skipped", "why": "needs y"}),
        (1, "__main__.SkippedError: needs y", {"status": "skipped", "why": "needs y"}),
        (None, "w", {"status": "timed out", "limit_s": 3, "words": "w"}),
        (-9, "w", {"status": "failed", "returncode": -9, "words": "w"}),
    ],
)
def test_ending(code: int | None, words: str, expected: Row) -> None:
    assert ending(code, words, 3) == expected


def test_read_rows_leaves_out_half_a_row(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"a": 1}\n{"b"')
    assert read_rows(tmp_path / "rows") == [{"a": 1}]
    assert read_rows(tmp_path / "none") == []


def _counting(options: Options) -> Iterator[Row]:
    yield from ({"i": i, "dry_run": options.dry_run} for i in range(len(options.earlier), 3))


def test_run_part_goes_on_behind_the_rows_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.Part, "load", lambda part: _counting)
    (tmp_path / "rows").write_text('{"i": 0}\n')
    run_part(Part("m:f", 1, ""), Options(dry_run=False), tmp_path / "rows")
    assert [row["i"] for row in read_rows(tmp_path / "rows")] == [0, 1, 2]

"""Runs the parts one after the other within a number of minutes, and leaves out what is done."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from battery.checkout import asked, importable
from battery.part import Options, Part, Row
from battery.process import Attempt, attempts
from battery.results import Results

STATE = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active"
AFTERMATH_S = 3.0  # kept of the time for saving and printing


@dataclass(frozen=True)
class Battery:
    """What to run, and how.

    Args:
        script: runs one part when given ``--part NAME --rows FILE`` behind ``arguments``.
        again: parts to measure anew although they are done.
        minutes: all parts together; None is without limit.
        report: is told each result when it is final.
    """

    parts: Mapping[str, Part]
    script: Path
    arguments: Sequence[str]
    options: Options
    again: frozenset[str]
    minutes: float | None
    report: Callable[[Row], None]

    def run(self, names: Sequence[str], results: Results) -> None:
        """Saves after every row, and the results of all parts at the end."""
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as temporary:
            environ = importable(Path(temporary))
            for name in names:
                if results.is_done(name) and name not in self.again:
                    self.report({**results.parts[name], "status": "done before"})
                    continue
                left_s = float("inf") if self.minutes is None else 60 * self.minutes - (time.monotonic() - started)
                self._run_one(name, results, Path(temporary), environ, left_s - AFTERMATH_S)

    def _run_one(self, name: str, results: Results, folder: Path, environ: Mapping[str, str], left_s: float) -> None:
        part = self.parts[name]
        if name in self.again:
            results.parts.pop(name, None)
        if why := self._why_not(part, left_s):
            self._finish(results, {"part": name, "seconds": 0.0, **why, "rows": []})
            return
        rows = folder / f"{name}.jsonl"
        if part.continues:
            rows.write_text("".join(json.dumps(row) + "\n" for row in results.earlier_rows(name)))
        command = [sys.executable, str(self.script), *self.arguments, "--part", name, "--rows", str(rows)]
        attempt = Attempt(name, command, environ, rows, folder / f"{name}.log", min(part.limit_s, left_s))
        result: Row = {}
        for result in attempts(attempt):
            results.keep(result)
        self._finish(results, {**result, "gpu_state_after": None if self.options.dry_run else asked(STATE)})

    def _why_not(self, part: Part, left_s: float) -> Row | None:
        if self.options.dry_run and part.needs_gpu:
            return {"status": "skipped", "why": f"needs a GPU: {part.needs_gpu}"}
        if left_s < part.least_s:
            return {"status": "not started", "why": f"needs {part.least_s} s, {max(left_s, 0):.0f} s are left"}
        return None

    def _finish(self, results: Results, result: Row) -> None:
        results.keep(result)
        self.report(result)

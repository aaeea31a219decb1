"""A part in a process of its own: its rows as they come, its time limit, and how it ended."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from battery.part import Options, Part, Row

WORDS = 4000  # characters kept of what a failed part printed
POLL_S = 0.2


@dataclass(frozen=True)
class Attempt:
    """How to run a part: the command line of a process that appends rows to ``rows``, one JSON object per line."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    rows: Path
    log: Path
    limit_s: float


def run_part(part: Part, options: Options, rows: Path) -> None:
    """The child's side: runs one part, and appends each row to a file as it comes.

    Rows that are there already are the part's own, of an attempt that was stopped.
    """
    if options.dry_run:
        # Read when a kernel is defined, so before any of them is imported.
        os.environ["TRITON_INTERPRET"] = "1"
    known = replace(options, earlier=tuple(read_rows(rows)))
    with rows.open("a") as file:
        for row in part.load()(known):
            file.write(json.dumps(row, default=str) + "\n")
            file.flush()


def end_with_parent(poll_s: float = 1.0) -> None:
    """Ends this process and its group when its parent is gone: a GPU must not be kept busy beside the next run."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_s)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def read_rows(path: Path) -> list[Row]:
    """The rows that are complete; a process that was killed may leave half of one."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def attempts(attempt: Attempt) -> Iterator[Row]:
    """The parent's side: the result so far whenever there is a new row, and at last how it ended.

    The process and its descendants are gone afterwards, also where the caller stops early.
    """
    start = time.monotonic()
    seen = -1
    with attempt.log.open("w") as words, _group(attempt, words.fileno()) as child:
        while True:
            code = _wait(child)
            over = time.monotonic() - start >= attempt.limit_s
            if code is not None or over:
                break
            rows = read_rows(attempt.rows)
            if len(rows) > seen:
                seen = len(rows)
                yield _result(attempt, start, {"status": "running"}, rows)
    words_of_child = attempt.log.read_text(errors="replace")[-WORDS:]
    yield _result(attempt, start, ending(code, words_of_child, attempt.limit_s), read_rows(attempt.rows))


@contextlib.contextmanager
def _group(attempt: Attempt, output: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A process and all it starts; killed on the way out."""
    child = subprocess.Popen(
        attempt.command, env=attempt.environ, stdout=output, stderr=subprocess.STDOUT, process_group=0
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _wait(child: "subprocess.Popen[bytes]") -> int | None:
    try:
        return child.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return None


def _result(attempt: Attempt, start: float, ended: Row, rows: list[Row]) -> Row:
    return {"part": attempt.name, "seconds": round(time.monotonic() - start, 1), **ended, "rows": rows}


def ending(code: int | None, words: str, limit_s: float) -> Row:
    """How a process ended, from its status (None where it was killed at its limit) and its last words."""
    if code == 0:
        return {"status": "ok"}
    if skipped := re.search(r"^(?:[\w.]+\.)?SkippedError: (.*)$", words, re.MULTILINE):
        return {"status": "skipped", "why": skipped[1]}
    if code is None:
        return {"status": "timed out", "limit_s": limit_s, "words": words}
    return {"status": "failed", "returncode": code, "words": words}

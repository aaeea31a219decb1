"""The results file: rewritten whole and in one move after every row, and read again by the next run."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from battery.part import Row

NAME = "gpu_battery.json"
SCHEMA = 2
IDENTITY = ("schema", "gpu", "commit", "sources", "dry_run")
"""What must be equal for parts of an earlier run to count as done."""


@dataclass
class Results:
    """Owns the file. ``parts`` holds the latest result of each part, in the order they are asked for."""

    path: Path
    head: Row
    decide: Callable[[Mapping[str, Row]], Row]
    parts: dict[str, Row] = field(default_factory=dict)

    def keep(self, result: Row) -> None:
        """Saves a part's result, unless an earlier attempt at it was stopped later and so has more rows."""
        before = self.parts.get(result["part"])
        if result["status"] != "ok" and before and len(before["rows"]) > len(result["rows"]):
            # What it measured stands; how this attempt ended is noted beside it.
            result = {**before, "last_attempt": {name: value for name, value in result.items() if name != "rows"}}
        self.parts[result["part"]] = result
        self.save()

    def save(self) -> None:
        """Replaces the file."""
        whole = {**self.head, "unix_time": int(time.time()), "decision": self.decide(self.parts)}
        text = json.dumps({**whole, "parts": list(self.parts.values())}, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        temporary.write_text(text + "\n")
        os.replace(temporary, self.path)

    def is_done(self, name: str) -> bool:
        return self.parts.get(name, {}).get("status") == "ok"

    def earlier_rows(self, name: str) -> list[Row]:
        """The rows of an attempt that did not end well."""
        rows: list[Row] = [] if self.is_done(name) else self.parts.get(name, {}).get("rows", [])
        return rows


def open_results(folder: Path, head: Row, decide: Callable[[Mapping[str, Row]], Row]) -> tuple[Results, str]:
    """The results in a folder, and what was found there, in words.

    A file of another GPU, commit or schema is put aside, not overwritten and not continued; so is one that is damaged.
    """
    results = Results(folder / NAME, head, decide)
    if not results.path.exists():
        return results, f"begins {results.path}"
    parts, different = read_parts(results.path, head)
    if not different:
        results.parts = parts
        return results, f"continues {results.path}"
    aside = results.path.with_name(f"gpu_battery.{time.time_ns() // 10**6}.json")
    os.replace(results.path, aside)
    return results, f"begins {results.path}; what was there differs ({', '.join(different)}) and is now {aside.name}"


def read_parts(path: Path, head: Row) -> tuple[dict[str, Row], list[str]]:
    """The parts of a file, and in what its identity differs from ``head``."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        different = [name for name in IDENTITY if found.get(name) != head[name]]
        return {part["part"]: part for part in found["parts"]}, different
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}, ["its text is no result"]

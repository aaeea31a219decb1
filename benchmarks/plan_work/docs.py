"""The counted plans in ``docs/plans.md``, between marks."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernel_bench.readme import markdown

from saishiki.runtime.plan.time_model import GPUS

DOCS = Path(__file__).parents[2] / "docs" / "plans.md"
_MARKED = re.compile(r"(<!-- figures of plan_counts\.py -->\n).*?(<!-- end of figures -->)", re.DOTALL)

Result = Mapping[str, Any]


def with_figures(text: str, result: Result) -> str:
    """The page's text with the result's figures between the marks."""
    return _MARKED.sub(lambda found: f"{found[1]}{commits(result)}\n\n{table(result)}\n{found[2]}", text)


def rewrite_docs(result: Result) -> None:
    """Puts the result's figures into the page."""
    DOCS.write_text(with_figures(DOCS.read_text(), result))


def commits(result: Result) -> str:
    """A sentence that says which code was counted."""
    counted = (f"{family} at `{of['environment']['commit']}`" for family, of in result["families"].items())
    return f"Counted: {', '.join(counted)}."


def table(result: Result) -> str:
    """A line for each module and size, of one picture."""
    body = [
        _cells(family, row)
        for family, counted in result["families"].items()
        for row in counted["rows"]
        if row["sizes"].get("batch", 1) == 1
    ]
    header = ["", "px", "launches", "before step 1", "GFLOP", "MB", "arena, MB", "at least, MB"]
    return markdown([*header, *(f"{gpu.name}, ms" for gpu in GPUS)], body)


def _cells(family: str, row: Mapping[str, Any]) -> list[str]:
    figures = (f"{row[name]:.1f}" for name in ("gflop", "mb", "arena_mb", "least_arena_mb"))
    times = (f"{row['modelled_ms'][gpu.name]:.2f}" for gpu in GPUS)
    before = str(row["once_per_picture"] or "")
    return [f"{family} `{row['module']}`", str(row["side_px"] or ""), str(row["launches"]), before, *figures, *times]

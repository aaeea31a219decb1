"""The counted operations in the project's README, between marks."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernel_bench.readme import markdown

from hoist_work.ladder import RUNGS

README = Path(__file__).parents[2] / "README.md"
SIZE_PX = 512
"""Of the columns that do not say theirs."""
_MARKED = re.compile(r"(<!-- figures of hoists\.py -->\n).*?(<!-- end of figures -->)", re.DOTALL)

Result = Mapping[str, Any]


def with_figures(text: str, result: Result) -> str:
    """The README's text with the result's figures between the marks."""
    return _MARKED.sub(lambda found: found[1] + table(result) + found[2], text)


def rewrite_readme(result: Result) -> None:
    """Puts the result's figures into the README."""
    README.write_text(with_figures(README.read_text(), result))


def table(result: Result) -> str:
    """GFLOP of a step by rung, a column for each case; empty where a rung changes nothing there."""
    cases = result["cases"]
    rungs = [{row["rung"]: row for row in case["rows"]} for case in cases]
    body = [
        [f"`{rung}`", what, *(f"{rows[rung]['matrix_gflop']:.1f}" if rung in rows else "" for rows in rungs)]
        for rung, what in RUNGS.items()
    ]
    left = [f"{case['rows'][-1]['percent_of_published']:.1f} %" for case in cases]
    header = ["", "what no longer runs in every step", *map(_heading, cases)]
    return markdown(header, [*body, ["", "left of the published step", *left]])


def _heading(case: Mapping[str, Any]) -> str:
    size = "" if case["size_px"] == SIZE_PX else f", {case['size_px']} px"
    return f"{case['generation']} {case['mode']}{size}"

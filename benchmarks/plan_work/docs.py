"""The counted plans in ``docs/plans.md``, between marks."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernel_bench.readme import markdown

from saishiki.runtime.plan.time_model import GPUS

DOCS = Path(__file__).parents[2] / "docs" / "plans.md"
_MARKED = re.compile(r"(<!-- figures of plan_counts\.py -->\n).*?(<!-- end of figures -->)", re.DOTALL)

_TIMES = [f"{gpu.name}, ms" for gpu in GPUS]

DENOISERS = """Every denoiser of every generation at 512x512, one picture, guided by reference and sketch: three rows.
Each launch is looked for among the kernels that are shipped, for each GPU:"""

Result = Mapping[str, Any]


def with_figures(text: str, result: Result) -> str:
    """The page's text with the result's figures between the marks."""
    families, denoisers = families_table(result["families"]), denoisers_table(result["denoisers"])
    figures = f"{sentence_of_commits(result)}\n\n{families}\n{DENOISERS}\n\n{denoisers}\n"
    return _MARKED.sub(lambda found: f"{found[1]}{figures}{found[2]}", text)


def rewrite_docs(result: Result) -> None:
    """Puts the result's figures into the page."""
    DOCS.write_text(with_figures(DOCS.read_text(), result))


def sentence_of_commits(result: Result) -> str:
    """A sentence that says which code was counted."""
    names = {"families": "", "denoisers": "denoisers of "}
    counted = (
        f"{what}{name} at `{of['environment']['commit']}`"
        for kind, what in names.items()
        for name, of in result[kind].items()
    )
    return f"Counted: {', '.join(counted)}."


def families_table(families: Result) -> str:
    """A line for each module of each family and each of its sizes, of one picture."""
    header = ["", "px", "launches", "before step 1", "GFLOP", "MB", "arena, MB", "at least, MB"]
    rows = (
        _cells(f"{family} `{row['module']}`", row)
        for family, counted in families.items()
        for row in counted["rows"]
        if row["sizes"].get("batch", 1) == 1
    )
    return markdown([*header, *_TIMES], list(rows))


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    before = str(row["once_per_picture"] or "")
    memory = _figures(row, "arena_mb", "least_arena_mb")
    work = _figures(row, "gflop", "mb")
    return [name, str(row["side_px"] or ""), str(row["launches"]), before, *work, *memory, *_times(row)]


def denoisers_table(denoisers: Result) -> str:
    """A line for each denoiser of each generation; what it lacks a kernel for, if anything."""
    header = ["", "launches", "before step 1", "GFLOP", "MB", *_TIMES, "without a kernel"]
    rows = (
        [
            f"{generation} `{row['module'].removeprefix('denoiser_')}`",
            str(row["launches"]),
            str(row["once_per_picture"]),
            *_figures(row, "gflop", "mb"),
            *_times(row),
            str(sum(row["without_kernel"].values())),
        ]
        for generation, counted in denoisers.items()
        for row in counted["rows"]
    )
    return markdown(header, list(rows))


def _figures(row: Mapping[str, Any], *names: str) -> list[str]:
    return [f"{row[name]:.1f}" for name in names]


def _times(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['modelled_ms'][gpu.name]:.2f}" for gpu in GPUS]

"""The figures in ``kernels/README.md``: for each op a marked section, written from the static report."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernel_bench.tables import figures

README = Path(__file__).parents[2] / "kernels" / "README.md"
MARKED = re.compile(r"(<!-- figures of (\w+(?:, \w+)*)[^>]*-->\n).*?(<!-- end of figures -->)", re.DOTALL)

# The README shows the largest levels; the report has all.
SHOWN: Mapping[str, str] = {
    "attention": r"",
    "average_pool": r"",
    "layer_norm": r"",
    "mean": r"",
    "region_order": r"",
    "pointwise": r"",
    "masked_split_cross_attention": r"512 px: 2 x 4096 |768 px: 2 x 9216 .*figure|1024 px: 2 x 4096 .*figure",
    "split_projection": r"512 px: 2 x 4096 |1024 px: 2 x 4096 ",
    "fused_sampler_step": r"",
    "convolution": r"64 x 256 x 256 to 64, 3x3, residual|128 x 128 x 128|512 x 32 x 32|8192|1280|128 x 512 x 512",
    "group_norm_silu": r"1 x 64 x 256 x 256$|128 \+ 64|1 x 64 .*sums|2 x 320|2 x 1280|batch 8.*512$",
}

Row = Mapping[str, Any]


def with_figures(text: str, report: Row) -> str:
    """The README's text, with the report's figures between the marks."""
    return MARKED.sub(lambda found: found[1] + section(found[2], report) + found[3], text)


def rewrite_readme(report: Row) -> None:
    """Puts the report's figures into ``kernels/README.md``."""
    README.write_text(with_figures(README.read_text(), report))


def section(ops: str, report: Row) -> str:
    """Two tables of an op, or of several with commas between them: least times of some cases, and what was compiled."""
    names = ops.split(", ")
    cases = [row for op in names for row in report["cases"] if row["op"] == op and re.search(SHOWN[op], row["case"])]
    kernels = [row for op in names for row in report["cubins"] if row["name"].startswith(op)]
    return f"\n{_cases_table(cases, report['peaks'])}\n{_kernels_table(kernels)}\n"


def _cases_table(rows: Sequence[Row], peaks: Sequence[Row]) -> str:
    names = [gpu["name"] for gpu in peaks]
    mixed = any("mixed_share" in row for row in rows)
    header = ["case", *(["mixed tiles", "useful"] if mixed else []), "GFLOP", "MB", "launches"]
    header += [f"{name} at least, µs" for name in names]
    body = []
    for row in rows:
        shares = [f"{row['mixed_share']:.0%}", f"{row['useful_share']:.0%}"] if mixed else []
        body.append([row["case"], *shares, *figures(row, names)])
    return markdown(header, body)


def _kernels_table(rows: Sequence[Row]) -> str:
    targets = list(dict.fromkeys(row["target"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    numbers = " / ".join(target.removeprefix("sm") for target in targets)
    body = []
    for name in names:
        of_target = {row["target"]: row for row in rows if row["name"] == name}
        by_target = [of_target.get(target) for target in targets]
        body.append(
            [
                f"`{name}`",
                _each([_cell(row, lambda row: str(row["registers"])) for row in by_target]),
                _each([_cell(row, lambda row: f"{row['shared_bytes'] / 1024:.3g}") for row in by_target]),
                _each([_cell(row, lambda row: f"{row['occupancy']:.0%}".removesuffix("%")) for row in by_target]),
                _each([str(row["spill_bytes"] or "none") for row in of_target.values()]),
            ]
        )
    return markdown(
        [f"compiled, sm {numbers}", "registers per thread", "shared memory, KiB", "occupancy, %", "spills"], body
    )


def _cell(row: Row | None, show: Callable[[Row], str]) -> str:
    """A dash where the kernel is not compiled for the target."""
    return "-" if row is None else show(row)


def _each(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table, ending in a newline."""
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

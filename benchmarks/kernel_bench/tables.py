"""Prints what ``bench_kernels.py`` found."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
WIDTH = 140  # where there is no terminal to ask


def print_static(report: Row) -> None:
    """The cases of each op with their least times, and the compiled kernels."""
    names = [peaks["name"] for peaks in report["peaks"]]
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for op in dict.fromkeys(row["op"] for row in report["cases"]):
        rows = [[row["case"], *figures(row, names)] for row in report["cases"] if row["op"] == op]
        columns = ["case", "GFLOP", "MB", "launches", *(f"{name} at least, us" for name in names)]
        console.print(_table(f"{op}: counted, not measured", columns, rows))
    console.print(
        _table(
            "Compiled kernels",
            ["kernel", "target", "registers", "shared", "spilled", "blocks per SM", "occupancy", "limited by"],
            [_cubin_cells(row) for row in report["cubins"]],
        )
    )


def figures(row: Row, gpus: Sequence[str]) -> list[str]:
    """GFLOP, MB, launches, and the roofline on each GPU with what bounds it."""
    least = [row["roofline"][name] for name in gpus]
    return [
        three_digits((row["matrix_flops"] + row["vector_flops"]) / 1e9),
        three_digits(row["nbytes"] / 1e6),
        str(row["launches"]),
        *(f"{three_digits(each['us'])} ({each['bound']})" for each in least),
    ]


def three_digits(value: float) -> str:
    """``0.00123``, ``12.3``, ``1234``."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _cubin_cells(row: Row) -> list[str]:
    return [
        row["name"],
        row["target"],
        str(row["registers"]),
        str(row["shared_bytes"]),
        str(row["spill_bytes"]),
        str(row["blocks_per_multiprocessor"]),
        f"{row['occupancy']:.0%}",
        ", ".join(row["limited_by"]),
    ]


def print_measured(row: Row) -> None:
    """One case: red and why, or its speed, its rivals and its targets."""
    console = Console(soft_wrap=True)
    name = f"{row['op']}, {row['case']}"
    if row["red"]:
        why = row.get("failed") or f"error {row['error']:.3g}, budget {row['budget']:.3g}"
        console.print(f"[bold red]red[/]  {name}: {why}; not timed")
        return
    console.print(f"[green]ok[/]   {name}: {_speed(row)}")
    for rival, figures in row["rivals"].items():
        console.print(f"       {rival}: {_rival(figures)}")
    for target in row["targets"]:
        verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: "not measured"}[target["met"]]
        console.print(f"       {target['what']} {target['wanted']}: {_number(target['value'])} {verdict}")


def _speed(row: Row) -> str:
    if "p50_us" not in row:
        return f"error {row['error']:.3g} of {row['budget']:.3g}, not timed"
    times = f"p50 {row['p50_us']} us, p90 {row['p90_us']}, p99 {row['p99_us']}"
    rates = f"{row['gb_per_s']} GB/s, {row['tflops']} TFLOP/s"
    share = f"{row['ceiling_percent']} % of the measured ceiling ({row['bound']})"
    return f"{times}; {rates}, {share}; {row['launches']} launches"


def _rival(row: Row) -> str:
    if "unavailable" in row:
        return f"unavailable: {row['unavailable']}"
    if row.get("red"):
        return f"red: error {row['error']:.3g}, budget {row['budget']:.3g}; not timed"
    return f"p50 {row['p50_us']} us" if "p50_us" in row else "ran, not timed"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    return table

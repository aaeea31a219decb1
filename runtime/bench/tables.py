"""A report for people: one table per runner, and one per plan."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from saishiki.runtime.bench.schema import Memory, PlanResult, Report, Row, RunnerResult
from saishiki.runtime.plan_tables import plan_table
from saishiki.runtime.signature import Sizes

_SHAPE = ("batch", "height", "width")


def tables_of(report: Report) -> Iterator[Table]:
    """A table for each runner."""
    return (_table(runner) for runner in report.runners)


def plan_tables_of(report: Report) -> Iterator[Table]:
    """A table for each plan, by kinds of launches: as each runner took it, else as it is modelled."""
    shown: list[tuple[PlanResult, str | None]] = [
        (plan, runner.name) for runner in report.runners for plan in runner.plans
    ]
    timed = {plan.module for plan, _ in shown}
    shown = [*((plan, None) for plan in report.plans if plan.module not in timed), *shown]
    return (plan_table(plan, by_kind=True, runner=runner) for plan, runner in shown)


def _table(runner: RunnerResult) -> Table:
    names = ("what", "sizes", "n", "p50 ms", "p90 ms", "p99 ms", "spread", "img/s")
    title = escape(f"{runner.name}: parity passed; {_memory_text(runner.memory)}")
    table = Table(*names, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in runner.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    summary = row.summary
    what = escape(", ".join(text for text in (row.subject, row.part) if text))
    times = (f"{ms:.4g}" for ms in (summary.p50_ms, summary.p90_ms, summary.p99_ms))
    rate = "" if row.images_per_s is None else f"{row.images_per_s:.3g}"
    return what, _sizes_text(row.sizes), str(summary.n), *times, f"{summary.spread:.1%}", rate


def _sizes_text(sizes: Sizes) -> str:
    """Such as ``1x256x256 10 steps``: batch, height and width by themselves, the others by their names."""
    shape = "x".join(str(size) for name, size in sizes.items() if name in _SHAPE)
    others = [
        f"{size} {name if size != 1 else name.removesuffix('s')}" for name, size in sizes.items() if name not in _SHAPE
    ]
    return " ".join(text for text in (shape, *others) if text)


def _memory_text(memory: Memory) -> str:
    parts = {
        "weights": memory.weights_bytes,
        "activations": memory.activations_bytes,
        "peak RSS": memory.peak_rss_bytes,
        "GPU": memory.gpu_bytes,
    }
    return ", ".join(f"{name} {nbytes / 1e6:.1f} MB" for name, nbytes in parts.items() if nbytes is not None)

"""How an export is shown: a progress bar while it runs, a closing table, or JSON for machines."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from saishiki.export.progress import STAGES, Observer, Silent, Stage
from saishiki.runtime.manifest import Certificate, Manifest, ModuleEntry


class ProgressBar:
    """An :class:`saishiki.export.progress.Observer` that draws a bar, with notes above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("export", total=sum(stage.share for stage in STAGES))
        self._current: Stage | None = None
        self._before = 0.0

    def stage(self, stage: Stage) -> None:
        """Completes the stage before and shows the name of this one."""
        self._before += self._current.share if self._current else 0.0
        self._progress.update(self._task, completed=self._before, description=stage.name)
        self._current = stage

    def part(self, name: str, done: int, total: int) -> None:
        """Shows the part's name, and the stage's share of those that have ended."""
        assert self._current is not None, "a part is of a stage"
        completed = self._before + self._current.share * done / total
        self._progress.update(self._task, completed=completed, description=f"{self._current.name}: {name}")

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)


class Notes(Silent):
    """An :class:`saishiki.export.progress.Observer` that prints the notes to stderr, and nothing else."""

    def note(self, text: str) -> None:
        """Prints a line."""
        click.echo(text, err=True)


@contextmanager
def observing(*, quiet: bool) -> Iterator[Observer]:
    """An observer on stderr; where ``quiet`` it prints notes alone."""
    if quiet:
        yield Notes()
        return
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("about"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield ProgressBar(progress)


def table_of_export(manifest: Manifest) -> Table:
    """The closing table: a row for every graph and every engine."""
    table = Table(title=f"{manifest.family} ({manifest.variant}), checkpoint {escape(manifest.checkpoint.name)}")
    for heading in ("module", "engine", "nodes", "MB", "build s", "error against fp32", "budget", "verdict"):
        table.add_column(heading, justify="left" if heading in ("module", "engine", "verdict") else "right")
    for name, module in manifest.modules.items():
        for row in _rows(name, module, manifest.certificate):
            table.add_row(*row)
    for image in manifest.certificate.images:
        sizes = "x".join(str(size) for size in image.sizes.values())
        table.add_row(
            f"image {sizes}, {len(image.step_budgets)} steps",
            f"ONNX {image.precision}",
            "",
            "",
            "",
            f"{image.psnr_db:.1f} dB",
            f">= {image.least_psnr_db:.1f} dB",
            _verdict(image.passed),
        )
    return table


def _rows(name: str, module: ModuleEntry, certificate: Certificate) -> Iterator[tuple[str, ...]]:
    for precision, graph in module.graphs.items():
        rows = [row for row in certificate.rows if (row.module, row.precision) == (name, precision)]
        worst = max(rows, key=lambda row: row.error / row.budget if math.isfinite(row.error) else math.inf)
        megabytes = graph.graph.bytes + (graph.weights.bytes if graph.weights else 0)
        yield (
            name,
            f"ONNX {precision}",
            str(graph.nodes),
            _megabytes(megabytes),
            "",
            f"{worst.error:.1e}",
            f"{worst.budget:.1e}",
            _verdict(all(row.passed for row in rows)),
        )
    for engine in module.engines:
        label = f"{engine.backend} {engine.target} {engine.key.precision}"
        size, seconds = _megabytes(engine.file.bytes), f"{engine.build_seconds:.1f}"
        yield name, label, str(engine.layers), size, seconds, "", "", "not run here"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _verdict(passed: bool) -> str:
    return "[green]passed[/]" if passed else "[red]failed[/]"


def json_of_export(manifest: Manifest, *, bundle: Path | None, reused_engines: int | None) -> str:
    """One JSON object: the verdict, the bundle or null where none was written, and the manifest."""
    content = {
        "verdict": manifest.certificate.verdict,
        "bundle": str(bundle) if bundle else None,
        "reused_engines": reused_engines,
        "manifest": manifest,
    }
    return msgspec.json.encode(content).decode()

"""One figure per report: latency of an image by runner, what its time goes to, and throughput."""

import importlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saishiki.runtime.bench.files import check_folder, write_whole
from saishiki.runtime.bench.schema import Report, Row, RunnerResult, Subject
from saishiki.runtime.errors import SaishikiError

FORMATS = {".svg": "svg", ".png": "png"}
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito: told apart by everybody
PARTS: Mapping[Subject, str] = {
    "step engine": "engine",
    "step host overhead": "host between engines",
    "around the steps": "pictures in and out",
}
_DPI = 150


def check_plot(path: Path) -> None:
    """Raises ``SaishikiError`` where no plot could be written to ``path``: its suffix, or matplotlib missing."""
    if path.suffix.lower() not in FORMATS:
        raise SaishikiError(f"{path} has the suffix {path.suffix!r}: use one of {', '.join(FORMATS)}")
    check_folder(path)
    _figure_class()


def write_plot(path: Path, report: Report) -> None:
    """Draws a report as .svg or .png, whole or not at all."""
    check_plot(path)
    stream = io.BytesIO()
    figure_of(report).savefig(stream, format=FORMATS[path.suffix.lower()], dpi=_DPI)
    write_whole(path, stream.getvalue())


def figure_of(report: Report) -> Any:
    """The figure: three panels, one row of labels per runner."""
    figure = _figure_class()(figsize=(12, 2.9 + 0.4 * len(report.runners)), layout="constrained")
    latency, shares, throughput = figure.subplots(1, 3)
    _draw_latency(latency, report)
    _draw_shares(shares, report)
    _draw_throughput(throughput, report)
    figure.suptitle(_title(report), fontsize="medium")
    return figure


def _figure_class() -> Any:
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise SaishikiError(f"a plot needs matplotlib ({error}); run: pip install 'saishiki[bench]'") from error


def _title(report: Report) -> str:
    task, environment = _row(report.runners[0], "image"), report.environment
    sizes = task.sizes if task else {}
    where = ", ".join(dict.fromkeys(gpu.name for gpu in environment.gpus_before)) or (
        f"{environment.processor}, {environment.cores} cores"
    )
    what = f"{report.bundle.family} {sizes.get('height')}x{sizes.get('width')}, {sizes.get('steps')} steps"
    return f"{what} on {where}" + (" (quick run: not a measurement)" if report.quick else "")


def _draw_latency(axes: Any, report: Report) -> None:
    """The median of one image as a bar, the 99th percentile as a mark on its line."""
    for place, runner in enumerate(report.runners):
        row = _row(runner, "image")
        if row is None:
            continue
        p50, p99 = row.summary.p50_ms, row.summary.p99_ms
        axes.barh(place, p50, height=0.6, color=COLOURS[0])
        axes.plot([p50, p99], [place, place], color="black", linewidth=1)
        axes.plot([p99], [place], "|", color="black", markersize=10)
        axes.annotate(f"{_short(p50)} / {_short(p99)}", (p99, place), (6, 0), textcoords="offset points", va="center")
    _finish(axes, "One image: p50 (bar) and p99 (mark), ms", report)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.3)


def _short(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def _draw_shares(axes: Any, report: Report) -> None:
    """What one image's time goes to, in percent of the medians' sum."""
    drawn = False
    for place, runner in enumerate(report.runners):
        times = {name: _image_ms(runner, subject) for subject, name in PARTS.items()}
        total, left = sum(times.values()), 0.0
        if _row(runner, "step engine") is None or total <= 0:
            continue  # the backend cannot tell
        for colour, (name, ms) in zip(COLOURS, times.items(), strict=False):
            share = 100 * ms / total
            axes.barh(place, share, left=left, height=0.6, color=colour, label=None if drawn else name)
            left += share
        drawn = True
        engine = 100 * times[PARTS["step engine"]] / total
        axes.annotate(f"{engine:.1f} % engine", (2, place), color="white", va="center", fontsize="small")
    _finish(axes, "Where the time goes, %", report)
    axes.set_yticklabels([])
    axes.set_xlim(0, 100)
    if drawn:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, fontsize="small")


def _image_ms(runner: RunnerResult, subject: Subject) -> float:
    """A part's median over a whole image: steps add up; never below 0, as a difference of clocks may be."""
    row = _row(runner, subject)
    if row is None:
        return 0.0
    return max(0.0, row.summary.p50_ms * (row.sizes["steps"] if subject.startswith("step") else 1))


def _draw_throughput(axes: Any, report: Report) -> None:
    """Images per second against batch (full line) and against callers (broken line)."""
    for place, runner in enumerate(report.runners):
        colour, alone = COLOURS[place % len(COLOURS)], _row(runner, "image")
        first = [(1, 1e3 / alone.summary.p50_ms)] if alone else []
        for subject, symbol, style in (("batch", "batch", "o-"), ("callers", "callers", "s--")):
            rows = [row for row in runner.rows if row.subject == subject and row.images_per_s is not None]
            points = first + [(row.sizes[symbol], row.images_per_s or 0.0) for row in rows]
            if rows:
                axes.plot(
                    *zip(*points, strict=True), style, color=colour, label=f"{runner.name}, {symbol}", markersize=4
                )
    axes.set_title("Images per second against batch or callers", fontsize="small")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1, frameon=False, fontsize="small")


def _finish(axes: Any, title: str, report: Report) -> None:
    axes.set_title(title, fontsize="small")
    axes.set_yticks(range(len(report.runners)), [runner.name for runner in report.runners])
    axes.set_ylim(len(report.runners) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _row(runner: RunnerResult, subject: Subject) -> Row | None:
    return next((row for row in runner.rows if row.subject == subject), None)

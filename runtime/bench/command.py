"""``saishiki bench``: how fast a bundle is here, whether that has changed, and whether it is fast enough."""

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from saishiki.runtime.bench.compare import DEFAULT_THRESHOLD, Comparison, check_comparable, circumstances_of, compare
from saishiki.runtime.bench.environment import describe_environment
from saishiki.runtime.bench.files import check_folder, write_whole
from saishiki.runtime.bench.plan import FULL, QUICK
from saishiki.runtime.bench.plot import check_plot, write_plot
from saishiki.runtime.bench.runners import Chosen, runners_here, runners_named
from saishiki.runtime.bench.schema import Report, json_from_report, read_report
from saishiki.runtime.bench.session import identity_of, run_bench
from saishiki.runtime.bench.tables import plan_tables_of, tables_of
from saishiki.runtime.bench.target import TargetCheck, check_target
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.cli_errors import exit_on_error

_FILE = click.Path(path_type=Path)
_ABOVE_ONE = click.FloatRange(min=1, min_open=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=_FILE)
@click.option("--backends", help="backend[:device][:precision], comma-separated [all that work here].")
@click.option("--output", type=_FILE, help="Write the result, with every sample, as JSON.")
@click.option("--plot", type=_FILE, help="Draw it as .svg or .png.")
@click.option("--compare", "old", type=_FILE, help="An earlier --output; exit code 1 where a row has become slower.")
@click.option(
    "--threshold", type=_ABOVE_ONE, default=DEFAULT_THRESHOLD, show_default=True, help="What --compare allows."
)
@click.option("--target-ms", type=click.FloatRange(min=0, min_open=True), help="Exit code 1 where p99 is over it.")
@click.option("--quick", is_flag=True, help="A smoke run of one step: shows that it works, not how fast.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@exit_on_error
def bench(
    bundle: Path,
    backends: str | None,
    output: Path | None,
    plot: Path | None,
    old: Path | None,
    threshold: float,
    target_ms: float | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Measure BUNDLE here, once its parity vectors have passed: images, steps, modules, starts, throughput, memory."""
    if quick and target_ms is not None:
        raise click.UsageError("--quick takes one sampling step, which no --target-ms is about; leave one of them out")
    for path, check in ((output, check_folder), (plot, check_plot)):
        if path is not None:
            check(path)
    opened = Bundle.open(bundle)
    chosen = _chosen(opened, backends, quick=quick)
    earlier = None if old is None else _earlier(old, opened, chosen, quick=quick)
    console = Console(stderr=as_json)
    with Console(stderr=True).status("") as status:
        report = run_bench(opened, chosen, QUICK if quick else FULL, lambda text: status.update(escape(text)))
    if output is not None:
        write_whole(output, json_from_report(report))
    if plot is not None:
        write_plot(plot, report)
    _print(console, report)
    if as_json:
        click.echo(json_from_report(report), nl=False)
    comparison = None if earlier is None else compare(earlier, report, threshold=threshold)
    checks = () if target_ms is None else check_target(report, target_ms, named=chosen.named)
    _judge(console, comparison, checks)


def _chosen(bundle: Bundle, backends: str | None, *, quick: bool) -> Chosen:
    if backends is None:
        return runners_here(bundle, best_precision_only=quick)
    return runners_named(bundle, backends.split(","))


def _earlier(path: Path, bundle: Bundle, chosen: Chosen, *, quick: bool) -> Report:
    """The result to compare with, refused before minutes are spent on one that it cannot be compared with."""
    earlier = read_report(path)
    now = circumstances_of(identity_of(bundle), describe_environment(), quick=quick)
    check_comparable(earlier, now, map(str, chosen.runners))
    return earlier


def _print(console: Console, report: Report) -> None:
    for table in (*tables_of(report), *plan_tables_of(report)):
        console.print(table)
    for place, reason in report.skipped.items():
        console.print(f"not measured: {place}: {reason}", markup=False, highlight=False, soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _judge(console: Console, comparison: Comparison | None, checks: tuple[TargetCheck, ...]) -> None:
    """Prints both verdicts; raises ``ClickException``, which is exit code 1, where one is bad."""
    failures = [str(check) for check in checks if not check.met]
    lines = [str(check) for check in checks if check.met]
    if comparison is not None:
        lines += [f"compared: {note}" for note in (*comparison.notes, *comparison.not_judged)]
        lines.append(f"compared: {len(comparison.changes)} rows, {len(comparison.regressions)} of them slower")
        failures += [f"slower: {change}" for change in comparison.regressions]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if failures:
        raise click.ClickException("\n".join(failures))

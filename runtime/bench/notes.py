"""What weakens a report's figures, in words a reader of its table must see."""

from collections.abc import Iterator

from saishiki.runtime.bench.drift import drift_of
from saishiki.runtime.bench.schema import Report, RunnerResult

BUSY_SHARE = 0.25
"""Load average per core from which on others are said to be using the machine."""
STEADY = 0.1
"""Drift of the whole images up to which a machine is said to have been steady: what a comparison allows anyway."""
QUICK_NOTE = "a quick run of few samples and one sampling step: it shows that the benchmark works, and no speed"
WARMED = ("image", "image again", "module", "batch")
"""Subjects with a warm-up of their own; the steps' rows are read off the images."""


def notes_on(report: Report) -> tuple[str, ...]:
    """One sentence per weakness; none where there is none."""
    if report.quick:
        return (QUICK_NOTE,)
    machine = tuple(_of_machine(report))
    return machine + tuple(note for runner in report.runners for note in _of_runner(runner))


def _of_machine(report: Report) -> Iterator[str]:
    environment = report.environment
    if environment.load_average > BUSY_SHARE * environment.cores:
        yield (
            f"the machine was busy before the run: load average {environment.load_average:g} "
            f"on {environment.cores} cores"
        )
    for before, after in zip(environment.gpus_before, environment.gpus_after, strict=False):
        if before.power_limit_w != after.power_limit_w:
            yield f"{before.name}: the power limit went from {before.power_limit_w} to {after.power_limit_w} W"


def _of_runner(runner: RunnerResult) -> Iterator[str]:
    stability = runner.stability
    if not stability.agree:
        yield (
            f"{runner.name}: two measurements of one image differ by {stability.difference:.1%} "
            f"({stability.first_p50_ms:.4g} and {stability.again_p50_ms:.4g} ms), "
            f"their own spread allows {stability.allowed:.1%}"
        )
    elif (drift := drift_of(runner)) > STEADY:
        yield (
            f"{runner.name}: whole images of this run lie {drift:.1%} around their median, so the machine was not "
            "steady; a row of few samples is no surer than that"
        )
    warmups = [(row, row.warmup) for row in runner.rows if row.subject in WARMED]
    unstable = [str(row) for row, warmup in warmups if warmup is not None and not warmup.stable]
    if unstable:
        yield f"{runner.name}: the warm-up of {len(unstable)} rows ended before they were stable: {'; '.join(unstable)}"

"""Two result files side by side: which rows have become slower, and by more than chance.

Rows of the same runner, subject and sizes are compared by their medians. A row has regressed where the new median is
more than ``threshold`` times the old one and also farther from it than the runs explain: by the row's own spreads,
widened where samples are few and added up, or by the larger of both runs' drifts. What a machine does to whole images
within minutes, it does to other rows too, and either run alone shows how far it goes; see :mod:`.drift`. Rows of fewer
than three samples have no spread to speak of and are not judged.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from saishiki.runtime.bench.drift import drift_of, widened_spread
from saishiki.runtime.bench.schema import BundleIdentity, Environment, Report, Row, RunnerResult
from saishiki.runtime.bench.summary import LEAST_SPREAD, Summary
from saishiki.runtime.errors import SaishikiError

LEAST_SAMPLES = 3
DEFAULT_THRESHOLD = 1.10

Key = tuple[str, str, str, tuple[tuple[str, int], ...]]


@dataclass(frozen=True)
class Change:
    """A row in both files: medians in milliseconds, new over old, and the ratio that the runs explain."""

    row: str
    old_ms: float
    new_ms: float
    ratio: float
    explained: float
    regressed: bool

    @property
    def agrees(self) -> bool:
        """Whether both medians are the same as far as the runs can tell."""
        return 1 / self.explained <= self.ratio <= self.explained

    def __str__(self) -> str:
        return (
            f"{self.row}: {self.old_ms:.4g} -> {self.new_ms:.4g} ms, ratio {self.ratio:.3f} "
            f"(spread explains {self.explained:.3f})"
        )


@dataclass(frozen=True)
class Comparison:
    """All rows that both files have, and what was not judged and why."""

    changes: tuple[Change, ...]
    not_judged: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """The rows that have become slower."""
        return tuple(change for change in self.changes if change.regressed)


@dataclass(frozen=True)
class Circumstances:
    """What two results must have in common before their times may be compared."""

    checkpoint: str
    profiles: tuple[str, ...]
    processor: str
    cores: int
    gpus: tuple[str, ...]
    quick: bool


def circumstances_of(bundle: BundleIdentity, environment: Environment, *, quick: bool) -> Circumstances:
    """The circumstances of a report, or of one that is about to be made."""
    return Circumstances(
        checkpoint=bundle.checkpoint_sha256,
        profiles=bundle.profiles,
        processor=environment.processor,
        cores=environment.cores,
        gpus=tuple(gpu.name for gpu in environment.gpus_before),
        quick=quick,
    )


def check_comparable(old: Report, now: Circumstances, runners: Iterable[str]) -> None:
    """Raises ``SaishikiError`` where an old report is of another bundle, machine or effort, or has none of the runners.

    A bundle is another one where its checkpoint or its profiles are; one exported anew is what one wants to compare.
    """
    before = circumstances_of(old.bundle, old.environment, quick=old.quick)
    for field in fields(Circumstances):
        then, here = getattr(before, field.name), getattr(now, field.name)
        if then != here:
            raise SaishikiError(
                f"the result to compare with has {field.name} {then!r}, this run {here!r}; "
                "compare results of one bundle on one machine, measured with the same options"
            )
    measured, wanted = [runner.name for runner in old.runners], list(runners)
    if not set(measured) & set(wanted):
        raise SaishikiError(
            f"nothing to compare: the earlier result has {', '.join(measured) or 'no backend'}, "
            f"this run {', '.join(wanted)}; choose with --backends"
        )


def compare(old: Report, new: Report, *, threshold: float = DEFAULT_THRESHOLD) -> Comparison:
    """The changes from an old report to a new one; raises ``SaishikiError`` where they have nothing in common."""
    if not threshold > 1:
        raise ValueError(f"the threshold must be above 1 (1.10 allows 10 % more), got {threshold:g}")
    now = circumstances_of(new.bundle, new.environment, quick=new.quick)
    check_comparable(old, now, (runner.name for runner in new.runners))
    before, after = _rows_of(old), _rows_of(new)
    shared = [key for key in before if key in after]
    judged = [key for key in shared if _can_be_judged(before[key], after[key])]
    too_few = [f"{_name(key)}: fewer than {LEAST_SAMPLES} samples, or no time" for key in shared if key not in judged]
    gone = [f"{_name(key)}: only in the old result" for key in before if key not in after]
    fresh = [f"{_name(key)}: only in the new result" for key in after if key not in before]
    changes = tuple(_change(_name(key), before[key], after[key], threshold) for key in judged)
    return Comparison(changes, (*too_few, *gone, *fresh), (*_notes(old, new), *_agreement(changes)))


@dataclass(frozen=True)
class _Measured:
    """A row's summary, its spread, widened for few samples, and the drift of its run."""

    summary: Summary
    spread: float
    drift: float


def _rows_of(report: Report) -> dict[Key, _Measured]:
    return {
        _key(runner, row): _Measured(row.summary, widened_spread(row.summary), drift_of(runner))
        for runner in report.runners
        for row in runner.rows
    }


def _key(runner: RunnerResult, row: Row) -> Key:
    return runner.name, row.subject, row.part, tuple(sorted(row.sizes.items()))


def _name(key: Key) -> str:
    runner, subject, part, sizes = key
    return ", ".join(text for text in (runner, subject, part, " ".join(f"{s} {n}" for s, n in sizes)) if text)


def _can_be_judged(old: _Measured, new: _Measured) -> bool:
    return min(old.summary.n, new.summary.n) >= LEAST_SAMPLES and min(old.summary.p50_ms, new.summary.p50_ms) > 0


def _change(name: str, old: _Measured, new: _Measured, threshold: float) -> Change:
    ratio = new.summary.p50_ms / old.summary.p50_ms
    explained = 1 + max(old.spread + new.spread, old.drift, new.drift, LEAST_SPREAD)
    return Change(
        row=name,
        old_ms=old.summary.p50_ms,
        new_ms=new.summary.p50_ms,
        ratio=ratio,
        explained=explained,
        regressed=ratio > threshold and ratio > explained,
    )


def _agreement(changes: tuple[Change, ...]) -> Iterator[str]:
    """How many rows agree, and which do not although they have not regressed."""
    agreeing = sum(change.agrees for change in changes)
    yield f"{agreeing} of {len(changes)} rows agree, as far as the runs can tell"
    for change in changes:
        if not (change.agrees or change.regressed):
            yield f"they do not agree, {'faster' if change.ratio < 1 else 'within the threshold'}: {change}"


def _notes(old: Report, new: Report) -> tuple[str, ...]:
    notes = []
    if old.bundle.digest != new.bundle.digest:
        notes.append("the checkpoint is the same, but was exported anew: the bundles differ")
    versions = old.environment.packages, new.environment.packages
    for package in sorted(versions[0].keys() | versions[1].keys()):
        before, now = (found.get(package, "not installed") for found in versions)
        if before != now:
            notes.append(f"{package} went from {before} to {now}")
    return tuple(notes)

"""The latency gate: whether the 99th percentile of one image keeps within a target."""

from collections.abc import Iterable
from dataclasses import dataclass

from saishiki.runtime.bench.schema import Report, RunnerResult
from saishiki.runtime.bench.summary import percentile

ENOUGH = 100
"""Samples from which on the 99th percentile is not simply the largest."""


@dataclass(frozen=True)
class TargetCheck:
    """One image on one runner against the target, over all its samples."""

    runner: str
    target_ms: float
    p99_ms: float
    n: int

    @property
    def met(self) -> bool:
        """Whether the 99th percentile is not above the target."""
        return self.p99_ms <= self.target_ms

    def __str__(self) -> str:
        verdict = "within" if self.met else "over"
        largest = f", the slowest of {self.n}" if self.n < ENOUGH else f" of {self.n}"
        return f"{self.runner}: p99 of one image is {self.p99_ms:.4g} ms{largest}: {verdict} {self.target_ms:g} ms"


def check_target(report: Report, target_ms: float, *, named: bool) -> tuple[TargetCheck, ...]:
    """The check of every runner that was named; where none was, of the first: the fastest backend that works here."""
    runners = report.runners if named else report.runners[:1]
    return tuple(_check(runner, target_ms) for runner in runners)


def _check(runner: RunnerResult, target_ms: float) -> TargetCheck:
    images = [row.samples_ms for row in runner.rows if row.subject in ("image", "image again")]
    samples = tuple(_flat(images))
    return TargetCheck(runner.name, target_ms, percentile(samples, 99), len(samples))


def _flat(lists: Iterable[tuple[float, ...]]) -> Iterable[float]:
    return (sample for samples in lists for sample in samples)

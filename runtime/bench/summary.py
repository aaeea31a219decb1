"""What n samples come to: percentiles by nearest rank, and the spread that two runs are compared by."""

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_SPREAD = 0.02
"""Two medians this close, relatively, are never called different: clocks and schedulers are no better than that."""


@dataclass(frozen=True)
class Summary:
    """n samples in milliseconds.

    ``spread`` is how far the 10th and the 90th percentile lie from the median, the farther one, relative to the median.
    Percentiles are samples (nearest rank): below n = 100 the 99th is the largest.
    """

    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    spread: float


def percentile(samples: Sequence[float], q: int) -> float:
    """The smallest sample that at least q percent of all do not exceed; raises ``ValueError`` where there is none."""
    if not samples or not 0 < q <= 100:
        raise ValueError(f"expected samples and a percentage above 0, got {len(samples)} samples and {q}")
    ordered = sorted(samples)
    return ordered[-(-q * len(ordered) // 100) - 1]


def median(samples: Sequence[float]) -> float:
    """The 50th percentile."""
    return percentile(samples, 50)


def summarize(samples: Sequence[float]) -> Summary:
    """The summary of at least one sample."""
    p10, p50, p90, p99 = (percentile(samples, q) for q in (10, 50, 90, 99))
    spread = max(p90 - p50, p50 - p10) / p50 if p50 > 0 else 0.0
    return Summary(len(samples), p50, p90, p99, min(samples), max(samples), spread)


def shared_spread(a: Summary, b: Summary) -> float:
    """How far apart, relatively, the medians of two runs may lie by their own spread: the sum, or LEAST_SPREAD."""
    return max(a.spread + b.spread, LEAST_SPREAD)

"""How sure the rows of a run are: their own spread, widened where samples are few, and what the machine did meanwhile.

The spread of a row is the half-width that 80 % of its samples lie in. From few samples it comes out too narrow;
Student's t says by how much for normal errors: by 47 % from 3 samples, 20 % from 5, 8 % from 10, under 1 % from 100.

No number of samples helps where all are taken within a second and the machine is slower in the next: a neighbour, a
clock, the placement of threads. Each run measures whole images in two stretches, one before and one after nearly all
else. How far all of these lie from their median is the run's drift, and no row of the run is taken to be surer than it.
"""

from statistics import NormalDist

from saishiki.runtime.bench.schema import RunnerResult
from saishiki.runtime.bench.summary import Summary, summarize

_Z = NormalDist().inv_cdf(0.9)


def widening(n: int) -> float:
    """The 90 % quantile of Student's t with n - 1 degrees of freedom over the normal one; infinite below 3 samples.

    By the Cornish-Fisher expansion (Abramowitz and Stegun, 26.7.5), right to 0.4 %.
    """
    if n < 3:
        return float("inf")
    z, v = _Z, n - 1
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return (z + first / v + second / v**2 + third / v**3) / z


def widened_spread(summary: Summary) -> float:
    """A summary's spread, widened for its number of samples."""
    return summary.spread * widening(summary.n) if summary.spread else 0.0


def drift_of(runner: RunnerResult) -> float:
    """How far the whole images of a run lie from their median, relatively, or the medians of both stretches if more."""
    images = [row.samples_ms for row in runner.rows if row.subject in ("image", "image again")]
    pooled = summarize([ms for samples in images for ms in samples])
    return max(widened_spread(pooled), runner.stability.difference)

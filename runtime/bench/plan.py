"""How much is measured: the full benchmark, and the quick one that only shows that all of it works."""

from dataclasses import dataclass

from saishiki.runtime.bench.measure import Effort


@dataclass(frozen=True)
class Plan:
    """How much of what is measured.

    Args:
        limit_s: a runner that nobody named is left out where the ones before it tell that it would end later than this.
        least_starts: fresh processes for the cold start, and as many for a load whose libraries are warm.
        most_starts: so many of each, where ``starts_s`` allow.
        starts_s: after these, no process is started beyond ``least_starts``.
        steps: at most so many sampling steps; None takes the bundle's own number.
        callers: numbers of threads that call one colorizer at once.
        runs_per_caller: pictures that each of them asks for; fewer, but one, once ``callers_s`` have passed.
    """

    quick: bool
    limit_s: float
    module: Effort
    image: Effort
    least_starts: int
    most_starts: int
    starts_s: float
    steps: int | None
    callers: tuple[int, ...]
    runs_per_caller: int
    callers_s: float


FULL = Plan(
    quick=False,
    limit_s=480,
    module=Effort(
        window_runs=20,
        window_s=0.5,
        tolerance=0.05,
        most_windows=10,
        warmup_s=5,
        least_runs=5,
        most_runs=200,
        measure_s=3,
    ),
    image=Effort(
        window_runs=5,
        window_s=1,
        tolerance=0.05,
        most_windows=10,
        warmup_s=10,
        least_runs=3,
        most_runs=100,
        measure_s=10,
    ),
    least_starts=5,
    most_starts=15,
    starts_s=10,
    steps=None,
    callers=(2, 4),
    runs_per_caller=4,
    callers_s=5,
)

_BRIEF = Effort(
    window_runs=1,
    window_s=0,
    tolerance=0.05,
    most_windows=2,
    warmup_s=0.5,
    least_runs=1,
    most_runs=3,
    measure_s=0.5,
)
QUICK = Plan(
    quick=True,
    limit_s=480,
    module=_BRIEF,
    image=_BRIEF,
    least_starts=1,
    most_starts=1,
    starts_s=0,
    steps=1,
    callers=(2,),
    runs_per_caller=1,
    callers_s=0,
)

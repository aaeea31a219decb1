"""Choosing an engine for an operation: all of cuDNN's candidates are timed once per GPU, and the fastest is kept."""

import logging
import math
from collections.abc import Callable

from saishiki.runtime.backends.cudnn.choice_cache import Choice, ChoiceCache, Failure, Timing
from saishiki.runtime.backends.cudnn.execution_plan import ExecutionPlan
from saishiki.runtime.backends.cudnn.operation import Operation
from saishiki.runtime.backends.cudnn.planner import Candidates, Planner, no_engine_left
from saishiki.runtime.errors import BackendError

_LOG = logging.getLogger(__name__)

TimePlan = Callable[[ExecutionPlan], float]
"""The milliseconds that a plan takes; may raise ``BackendError``."""


def choose_plan(
    planner: Planner, operation: Operation, *, cache: ChoiceCache, time_ms: TimePlan, most: int | None = None
) -> ExecutionPlan:
    """The plan of the fastest engine: the kept choice where there is one that still holds, else by timing.

    Args:
        most: times so many candidates at most, those that cuDNN deems fastest; None times all.

    Raises ``BackendError`` where no candidate can be built and run.
    """
    candidates = planner.candidates(operation)
    if (kept := cache.read(operation)) is not None:
        try:
            return candidates.build(kept.engine)
        except BackendError as error:
            _LOG.warning("the kept choice is of no use, engines are timed anew: %s", error)
    choice = time_candidates(candidates, time_ms=time_ms, most=most)
    cache.write(operation, choice)
    # A graph of its own, so that the plans that lost are freed.
    return planner.candidates(operation).build(choice.engine)


def time_candidates(candidates: Candidates, *, time_ms: TimePlan, most: int | None = None) -> Choice:
    """The fastest candidate, of equals the one that cuDNN names first, with what all took.

    A candidate that cannot be built or run is left out and noted; raises ``BackendError`` where none remains.
    """
    timings: list[Timing] = []
    failures: list[Failure] = []
    for engine in list(candidates.engines)[:most]:
        try:
            plan = candidates.build(engine)
            timings.append(Timing(engine, _checked(float(time_ms(plan)), plan), plan.workspace_bytes))
        except BackendError as error:
            _LOG.info("left out: %s", error)
            failures.append(Failure(engine, str(error)))
    if not timings:
        raise BackendError(no_engine_left(candidates.operation, [failure.reason for failure in failures]))
    best = min(timings, key=lambda timing: timing.ms)
    _LOG.info("%s: %s, %.4f ms, best of %d", candidates.operation, best.engine, best.ms, len(timings))
    return Choice(best.engine, tuple(timings), tuple(failures))


def _checked(ms: float, plan: ExecutionPlan) -> float:
    if not (math.isfinite(ms) and ms > 0):
        raise BackendError(f"{plan.operation} by {plan.engine} was timed at {ms} ms, which it cannot take")
    return ms

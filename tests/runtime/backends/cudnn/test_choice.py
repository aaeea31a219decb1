"""Choosing among candidates by timing, and keeping the choice."""

from dataclasses import replace
from pathlib import Path

import pytest

from saishiki.runtime.backends.cudnn.choice import choose_plan, time_candidates
from saishiki.runtime.backends.cudnn.choice_cache import ChoiceCache, circumstances_of
from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.execution_plan import ExecutionPlan
from saishiki.runtime.backends.cudnn.planner import Planner
from saishiki.runtime.errors import BackendError
from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend

OPERATION = Convolution(1, 8, 8, 8, 8, (3, 3), 1, (1, 1, 1, 1))
FIRST, SECOND, LAST = "eng41_k2=7", "eng10_k2=5", "eng0"


class Clock:
    """Times given by engine; remembers what was timed."""

    def __init__(self, **ms: float) -> None:
        self.ms, self.timed = ms, []

    def __call__(self, plan: ExecutionPlan) -> float:
        self.timed.append(plan.engine)
        ms = self.ms[plan.engine.partition("_")[0]]
        if ms == 0:
            raise BackendError(f"{plan.engine} does not run")
        return ms


@pytest.fixture
def planner(played: PlayedFrontend) -> Planner:
    return Planner(played.cudnn, 90, handle=77)


@pytest.fixture
def cache(planner: Planner, tmp_path: Path) -> ChoiceCache:
    return ChoiceCache(circumstances_of(planner, gpu="NVIDIA H200", multiprocessors=132), tmp_path)


def test_the_fastest_is_chosen_and_kept(planner: Planner, cache: ChoiceCache) -> None:
    clock = Clock(eng41=3, eng10=1, eng0=2)
    plan = choose_plan(planner, OPERATION, cache=cache, time_ms=clock)
    assert (plan.engine, plan.workspace_bytes) == (SECOND, 512)
    assert clock.timed == [FIRST, SECOND, LAST]
    again = choose_plan(planner, OPERATION, cache=cache, time_ms=clock)
    assert (again.engine, len(clock.timed)) == (SECOND, 3)
    kept = cache.read(OPERATION)
    assert kept is not None
    assert [(timing.engine, timing.ms, timing.workspace_bytes) for timing in kept.timings] == [
        (FIRST, 3, 0),
        (SECOND, 1, 512),
        (LAST, 2, 0),
    ]


def test_another_operation_is_timed_for_itself(planner: Planner, cache: ChoiceCache) -> None:
    choose_plan(planner, OPERATION, cache=cache, time_ms=Clock(eng41=3, eng10=1, eng0=2))
    other = replace(OPERATION, residual=True)
    plan = choose_plan(planner, other, cache=cache, time_ms=Clock(eng41=1, eng10=3, eng0=2))
    assert (plan.engine, plan.operation) == (FIRST, other)


def test_the_chosen_plan_has_a_graph_of_its_own(played: PlayedFrontend, planner: Planner, cache: ChoiceCache) -> None:
    plan = choose_plan(planner, OPERATION, cache=cache, time_ms=Clock(eng41=3, eng10=1, eng0=2))
    assert [len(graph.built) for graph in played.graphs] == [3, 1]
    assert plan.graph is played.graphs[1]


def test_of_equals_the_first_is_chosen(planner: Planner) -> None:
    choice = time_candidates(planner.candidates(OPERATION), time_ms=Clock(eng41=2, eng10=1, eng0=1))
    assert choice.engine == SECOND


def test_only_the_first_ones_are_timed(planner: Planner) -> None:
    choice = time_candidates(planner.candidates(OPERATION), time_ms=Clock(eng41=2, eng10=3), most=2)
    assert (choice.engine, len(choice.timings)) == (FIRST, 2)


@pytest.mark.parametrize("ms", [float("nan"), float("inf"), -1.0])
def test_an_impossible_time_counts_as_a_failure(planner: Planner, ms: float) -> None:
    choice = time_candidates(planner.candidates(OPERATION), time_ms=Clock(eng41=ms, eng10=3, eng0=9))
    assert choice.engine == SECOND
    assert "timed at" in choice.failures[0].reason


def test_failures_are_left_out_and_noted(played: PlayedFrontend, planner: Planner) -> None:
    played.unbuildable = {FIRST}
    choice = time_candidates(planner.candidates(OPERATION), time_ms=Clock(eng10=0, eng0=9))
    assert choice.engine == LAST
    assert [(failure.engine, failure.reason.partition(": ")[2]) for failure in choice.failures] == [
        (FIRST, "Deselecting execution plan"),
        (SECOND, ""),
    ]
    assert choice.failures[1].reason == f"{SECOND} does not run"


def test_none_left_names_the_operation(planner: Planner, cache: ChoiceCache) -> None:
    with pytest.raises(
        BackendError, match=r"none of cuDNN's 3 engines for Convolution\(batch=1, .* is left, the first"
    ):
        choose_plan(planner, OPERATION, cache=cache, time_ms=Clock(eng41=0, eng10=0, eng0=0))
    assert cache.read(OPERATION) is None


@pytest.mark.parametrize("change", [{"engines": [(FIRST, 0), (LAST, 0)]}, {"unbuildable": {SECOND}}])
def test_a_kept_engine_that_is_no_candidate_any_more(
    played: PlayedFrontend, planner: Planner, cache: ChoiceCache, change: dict[str, object]
) -> None:
    clock = Clock(eng41=3, eng10=1, eng0=2)
    choose_plan(planner, OPERATION, cache=cache, time_ms=clock)
    for name, value in change.items():
        setattr(played, name, value)
    assert choose_plan(planner, OPERATION, cache=cache, time_ms=clock).engine == LAST
    assert len(clock.timed) == 5


def test_an_error_that_is_not_the_plans_goes_on(planner: Planner) -> None:
    def interrupted(plan: ExecutionPlan) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_candidates(planner.candidates(OPERATION), time_ms=interrupted)

"""Planning in a process of its own for a GPU that is not here, to check that cuDNN has kernels for all operations."""

import multiprocessing
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from saishiki.runtime.backends.cudnn.driver_stand_in import stand_in_for_driver
from saishiki.runtime.backends.cudnn.libraries import load_cudnn
from saishiki.runtime.backends.cudnn.operation import Operation
from saishiki.runtime.backends.cudnn.planner import WORKSPACE_LIMIT_BYTES, Planner
from saishiki.runtime.errors import BackendError


@dataclass(frozen=True)
class Planned:
    """What cuDNN would run: the engine that it deems fastest.

    Args:
        engine: its name, with its settings.
        candidates: how many engines can be built for it.
        workspace_bytes: the scratch memory of the first.
    """

    operation: Operation
    engine: str
    candidates: int
    workspace_bytes: int


def plan_elsewhere(
    operations: Iterable[Operation], sm: int, *, workspace_limit_bytes: int = WORKSPACE_LIMIT_BYTES
) -> tuple[Planned, ...]:
    """Plans every operation for the GPU that :func:`properties_of` knows of a compute capability.

    It starts a process, since without a driver some versions of cuDNN load beside a stand-in only, which stays.
    Equal operations are planned once. Raises ``BackendError`` where cuDNN is missing or has no plan for one of them.
    """
    distinct = list(dict.fromkeys(operations))
    try:
        # Not by fork: the libraries have threads.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(plan_in_this_process, distinct, sm, workspace_limit_bytes).result()
    except BrokenProcessPool as error:
        raise BackendError(f"the process that planned {len(distinct)} operations for sm_{sm} died") from error


def summary_of(planned: Iterable[Planned], sm: int) -> str:
    """One line about plans: how many, by which engines, with how much scratch memory."""
    planned = list(planned)
    engines = Counter(plan.engine.partition("_")[0] for plan in planned)
    shares = ", ".join(f"{engine} {count}" for engine, count in engines.most_common())
    return (
        f"{len(planned)} operations planned for sm_{sm}: {shares or 'none'};"
        f" {min((plan.candidates for plan in planned), default=0)} candidates at least,"
        f" workspace of the first at most {max((plan.workspace_bytes for plan in planned), default=0)} bytes"
    )


def plan_in_this_process(
    operations: Iterable[Operation], sm: int, workspace_limit_bytes: int = WORKSPACE_LIMIT_BYTES
) -> tuple[Planned, ...]:
    """As :func:`plan_elsewhere`, for a process that does nothing else: it may load a stand-in for the driver."""
    stand_in_for_driver()
    planner = Planner(load_cudnn(), sm, workspace_limit_bytes=workspace_limit_bytes)
    return tuple(_planned(planner, operation) for operation in operations)


def _planned(planner: Planner, operation: Operation) -> Planned:
    first = planner.first_plan(operation)
    candidates = planner.candidates(operation)
    count = sum(map(candidates.can_be_built, candidates.engines))
    return Planned(operation, first.engine, count, first.workspace_bytes)

"""The backends of plans, on the GPU; in a dry run on a device that Triton's interpreter plays, and a played cuDNN."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any

from battery.checkout import ROOT
from battery.part import Options, SkippedError
from saishiki.runtime.backends.cuda_backend import CudaBackend, open_cuda
from saishiki.runtime.backends.cudnn import CudnnPart, ExecutionPlan, Operation, Planner
from saishiki.runtime.errors import BackendError

CUDNN, TRITON = "cuda-cudnn", "cuda-triton"


@contextmanager
def plan_backend(name: str, options: Options) -> Iterator[CudaBackend]:
    """A backend by its name; the part is skipped where something is missing."""
    try:
        backend = _played(name) if options.dry_run else open_cuda(name, 0)
    except BackendError as error:
        raise SkippedError(str(error)) from error
    try:
        yield backend
    finally:
        backend.close()


@dataclass(frozen=True)
class PlayedCudnn:
    """What a backend takes of cuDNN on a device."""

    part: CudnnPart

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True)
class RecordedGraph:
    """A played graph, whose executions a played device records as a GPU would."""

    graph: Any
    device: Any

    def execute_plan_at_index(self, *arguments: Any) -> None:
        """Executes, or is recorded."""
        run = partial(self.graph.execute_plan_at_index, *arguments)
        run() if self.device.recording is None else self.device.recording.append(run)


def _played(name: str) -> CudaBackend:
    # What plays a GPU belongs to the tests.
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend
    from tests.runtime.backends.interpreted_device import InterpretedDevice

    device, planner = InterpretedDevice(), Planner(PlayedFrontend().cudnn, 90)

    def choose(operation: Operation) -> ExecutionPlan:
        plan = planner.first_plan(operation)
        return replace(plan, graph=RecordedGraph(plan.graph, device))

    cudnn: Any = PlayedCudnn(CudnnPart(0, choose)) if name == CUDNN else None
    return CudaBackend(device, cudnn)


@dataclass
class Watched:
    """What a device was asked to enqueue since somebody last forgot it: launches, and graphs with the host's time."""

    launches: int = 0
    graph_us: list[float] = field(default_factory=list)

    def forget(self) -> None:
        """Begins anew."""
        self.launches, self.graph_us = 0, []


def watch(device: Any) -> Watched:
    """Watches a device from now on; what is recorded into a graph is no launch."""
    watched, launch, capture = Watched(), device.launch, device.capture
    recording = False

    def counted_launch(name: str, **arguments: Any) -> None:
        watched.launches += not recording
        launch(name, **arguments)

    def watched_capture(work: Callable[[], None]) -> Callable[[], None]:
        nonlocal recording
        recording = True
        try:
            replay = capture(work)
        finally:
            recording = False

        def timed() -> None:
            begin = perf_counter()
            replay()
            watched.graph_us.append((perf_counter() - begin) * 1e6)

        return timed

    device.launch, device.capture = counted_launch, watched_capture
    return watched

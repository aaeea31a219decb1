"""Timing plans on a played device: what is recorded, on which memory, and what comes of a plan that does not run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from saishiki.runtime.backends.cudnn import timing
from saishiki.runtime.backends.cudnn.attention import Attention
from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.planner import Planner
from saishiki.runtime.backends.cudnn.timing import PlanTimer
from saishiki.runtime.backends.device import Memory
from saishiki.runtime.errors import BackendError
from tests.runtime.backends.cudnn.host_memory import aligned
from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend

OPERATION = Convolution(1, 4, 4, 8, 16, (3, 3), 1, (1, 1, 1, 1), residual=True)
FIRST, SECOND = "eng41_k2=7", "eng10_k2=5"
MS = {FIRST: 0.5, SECOND: 0.125, "eng0": 4.0}


@dataclass
class Mark:
    ms: float

    def wait(self) -> None:
        pass

    def ms_since(self, earlier: "Mark") -> float:
        return self.ms - earlier.ms


@dataclass
class PlayedDevice:
    """Host memory, and a clock that a replay advances by what its plans take; every other replay is disturbed."""

    frontend: PlayedFrontend
    memory: dict[int, Memory] = field(default_factory=dict)
    uploaded: list[np.ndarray] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    ms: float = 0.0

    def allocate(self, nbytes: int) -> Memory:
        owner = aligned((max(1, nbytes // 2),))
        memory = Memory(owner.ctypes.data, nbytes, owner)
        self.memory[memory.address] = memory
        return memory

    def upload(self, memory: Memory, array: np.ndarray) -> None:
        assert array.nbytes == memory.nbytes
        self.uploaded.append(array)
        memory.owner[...] = array

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        before = len(self.frontend.executed)
        self.log.append(f"capture after {before}")
        work()
        recorded = [engine for engine, *_ in self.frontend.executed[before:]]
        self.log.append(f"{len(recorded)} recorded")

        def replay() -> None:
            self.log.append("replay")
            self.ms += sum(MS[engine] for engine in recorded) + (50 if self.log.count("replay") % 5 == 2 else 0)

        return replay

    def mark(self) -> Mark:
        return Mark(self.ms)

    def synchronize(self) -> None:
        self.log.append("synchronize")


@pytest.fixture
def device(played: PlayedFrontend) -> PlayedDevice:
    return PlayedDevice(played)


def plan_of(played: PlayedFrontend, engine: str, operation: Any = OPERATION) -> Any:
    return Planner(played.cudnn, 90, handle=77).candidates(operation).build(engine)


@pytest.mark.parametrize("engine", [FIRST, SECOND])
def test_time_is_the_median_of_replays_per_execution(played: PlayedFrontend, device: PlayedDevice, engine: str) -> None:
    timer = PlanTimer(device, 77, repeats=10, replays=5)
    assert timer(plan_of(played, engine)) == pytest.approx(MS[engine])
    # Once before the capture, since kernels are loaded when they are first used.
    assert device.log == ["synchronize", "capture after 1", "10 recorded", *["replay"] * 6]
    workspace = {place for _, place, _ in played.executed}
    assert [device.memory[place].nbytes for place in workspace] == [512 if engine == SECOND else 0]
    assert {handle for *_, handle in played.executed} == {77}


def test_each_execution_reads_its_own_weights(
    played: PlayedFrontend, device: PlayedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointers: list[dict[int, int]] = []
    plan = plan_of(played, FIRST)
    monkeypatch.setattr(plan.graph, "execute_plan_at_index", lambda at, *rest: pointers.append(at))
    device.capture = lambda work: work() or (lambda: None)  # type: ignore[assignment, func-returns-value]
    PlanTimer(device, 77, repeats=4, replays=1)(plan)
    recorded = [{name: at[uid] for name, uid in plan.uids.items()} for at in pointers[1:]]
    assert [len({at[name] for at in recorded}) for name in ("x", "w", "bias", "residual", "y")] == [1, 4, 1, 1, 1]


def test_copies_of_weights_are_limited(
    played: PlayedFrontend, device: PlayedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbytes = OPERATION.layouts()["w"].nbytes
    for limit, copies in ((3 * nbytes, 3), (nbytes // 2, 1)):
        device.memory.clear()
        monkeypatch.setattr(timing, "_WEIGHT_BYTES", limit)
        PlanTimer(device, 77, repeats=8)(plan_of(played, FIRST))
        assert [memory.nbytes for memory in device.memory.values()].count(nbytes) == copies


def test_memory_is_random_and_kept_for_one_operation(played: PlayedFrontend, device: PlayedDevice) -> None:
    timer = PlanTimer(device, 77, repeats=2)
    timer(plan_of(played, FIRST))
    count = len(device.uploaded)
    assert all(0.5 < array.astype(np.float32).std() < 1.5 for array in device.uploaded)
    timer(plan_of(played, SECOND))
    assert len(device.uploaded) == count
    timer(plan_of(played, FIRST, Attention(1, 2, 4, 4, 8, 0.5)))
    assert len(device.uploaded) == count + 4


def test_a_plan_that_does_not_run(played: PlayedFrontend, device: PlayedDevice) -> None:
    played.unrunnable = {FIRST}
    with pytest.raises(BackendError, match=r"does not run Convolution\(.*CUDNN_STATUS_EXECUTION_FAILED"):
        PlanTimer(device, 77)(plan_of(played, FIRST))


def test_a_device_that_fails(played: PlayedFrontend, device: PlayedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise Exception("CUDA_ERROR_ILLEGAL_ADDRESS")  # cuda-core's errors are of no built-in class

    monkeypatch.setattr(device, "synchronize", fail)
    with pytest.raises(BackendError, match=r"by eng41_k2=7 does not run: CUDA_ERROR_ILLEGAL_ADDRESS"):
        PlanTimer(device, 77)(plan_of(played, FIRST))

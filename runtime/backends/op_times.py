"""What each operation of a plan takes on a GPU, one at a time, by CUDA graphs of its repetitions."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from saishiki.runtime.backends.device import Device
from saishiki.runtime.plan.ops import AnyOp

REPEATS, REPLAYS = 20, 5


class RunsOps(Protocol):
    """Operations that can be enqueued one by one."""

    @property
    def ops(self) -> tuple[AnyOp, ...]:
        """All of them, in the order of a run."""
        ...

    def enqueue_op(self, op: AnyOp) -> None:
        """Enqueues one of them alone."""
        ...


def time_ops(
    device: Device, execution: RunsOps, *, repeats: int = REPEATS, replays: int = REPLAYS
) -> dict[AnyOp, tuple[float, ...]]:
    """Milliseconds of one launch of each operation, by device events: a sample for each replay.

    A replayed graph holds the operation ``repeats`` times, and its time is divided: a launch and the gap behind it. All
    repetitions use the same memory, so what fits into the GPU's cache is found there, which a run cannot count on for
    weights. Operations come in the order of a run, and each is enqueued once before it is recorded: its kernel is
    loaded, and what it reads is what it reads in a run.
    """
    return {op: _samples(device, partial(execution.enqueue_op, op), repeats, replays) for op in execution.ops}


def _samples(device: Device, enqueue: Callable[[], None], repeats: int, replays: int) -> tuple[float, ...]:
    def work() -> None:
        for _ in range(repeats):
            enqueue()

    enqueue()
    device.synchronize()
    replay = device.capture(work)
    replay()
    return tuple(_ms(device, replay) / repeats for _ in range(replays))


def _ms(device: Device, replay: Callable[[], None]) -> float:
    begin = device.mark()
    replay()
    end = device.mark()
    end.wait()
    return end.ms_since(begin)

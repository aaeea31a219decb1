"""How long a plan takes on this GPU, as it will be run: replayed as a part of a CUDA graph."""

from collections.abc import Callable, Mapping
from statistics import median

import numpy as np

from saishiki.runtime.backends.cudnn.execution_plan import ExecutionPlan
from saishiki.runtime.backends.cudnn.operation import Operation
from saishiki.runtime.backends.device import Device, Memory
from saishiki.runtime.errors import BackendError

_WEIGHT_BYTES = 256 * 2**20  # more than any GPU's cache


class PlanTimer:
    """Times plans by replaying a graph that holds each several times, one right behind the other.

    Activations stay where they are and are mostly found in the GPU's cache, as those that the kernel before has just
    written; weights come from memory, as in a network that is larger than the cache: each repetition has its own copy.
    All are random, because a GPU that multiplies zeros clocks higher.

    Args:
        device: current in the calling thread; nothing else may be enqueued on it meanwhile.
        handle: of cuDNN, on the device's stream.
        repeats: executions in the graph.
        replays: the median of so many is the result.
    """

    def __init__(self, device: Device, handle: int, *, repeats: int = 20, replays: int = 5) -> None:
        self._device, self._handle = device, handle
        self._repeats, self._replays = repeats, replays
        self._operation: Operation | None = None
        self._memory: list[dict[str, Memory]] = []

    def __call__(self, plan: ExecutionPlan) -> float:
        """Milliseconds per execution; raises ``BackendError`` where it does not run."""
        sets = [_addresses(memory) for memory in self._memory_of(plan.operation)]
        workspace = self._device.allocate(plan.workspace_bytes)

        def enqueue(times: int) -> None:
            for k in range(times):
                plan.execute(self._handle, sets[k % len(sets)], workspace.address)

        try:
            enqueue(1)
            self._device.synchronize()
            replay = self._device.capture(lambda: enqueue(self._repeats))
            replay()
            return median(self._ms(replay) for _ in range(self._replays)) / self._repeats
        except BackendError:
            raise
        except Exception as error:  # cuda-core's own classes, derived from Exception alone
            raise BackendError(f"{plan.operation} by {plan.engine} does not run: {error}") from error

    def _ms(self, replay: Callable[[], None]) -> float:
        begin = self._device.mark()
        replay()
        end = self._device.mark()
        end.wait()
        return end.ms_since(begin)

    def _memory_of(self, operation: Operation) -> list[dict[str, Memory]]:
        """Memory for each tensor, once for every copy of the weights; kept until another operation is timed."""
        if operation != self._operation:
            self._memory = []
            self._memory = self._filled(operation)
            self._operation = operation
        return self._memory

    def _filled(self, operation: Operation) -> list[dict[str, Memory]]:
        rng = np.random.default_rng(0)
        layouts = operation.layouts()

        def fill(name: str) -> Memory:
            nbytes = layouts[name].nbytes
            memory = self._device.allocate(nbytes)
            self._device.upload(memory, rng.standard_normal(nbytes // 2, np.float32).astype(np.float16))
            return memory

        shared = {name: fill(name) for name in layouts if name != "w"}
        if "w" not in layouts:
            return [shared]
        copies = min(self._repeats, max(1, _WEIGHT_BYTES // layouts["w"].nbytes))
        return [{**shared, "w": fill("w")} for _ in range(copies)]


def _addresses(memory: Mapping[str, Memory]) -> dict[str, int]:
    return {name: where.address for name, where in memory.items()}

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from battery.cubins import BUDGET, LAUNCHES, cubins_on
from battery.cubins import ROW as TABLE_ROW

from saishiki.runtime.samplers import table_step


class Mark:
    def __init__(self, ms: float) -> None:
        self.ms = ms

    def wait(self) -> None: ...

    def ms_since(self, earlier: "Mark") -> float:
        return self.ms - earlier.ms


class Memory:
    def __init__(self, address: int) -> None:
        self.address = address


class Device:
    """A GPU that runs the sampler kernel in numpy; each launch takes a microsecond."""

    name, target = "a GPU", "sm90"

    def __init__(self, factor: float = 1.0) -> None:
        self.memory: dict[int, Any] = {}
        self.factor, self.launches, self.log = factor, 0, []

    def allocate(self, nbytes: int) -> Memory:
        memory = Memory(256 * (len(self.memory) + 1))
        self.memory[memory.address] = np.empty(nbytes // 4, np.float32)
        return memory

    def upload(self, memory: Memory, array: Any) -> None:
        self.memory[memory.address][:] = array.reshape(-1)

    def download(self, memory: Memory, array: Any) -> None:
        array[...] = self.memory[memory.address]

    def launch(self, name: str, *, x_ptr: int, prediction_ptr: int, table_ptr: int, n: int, **_: int) -> None:
        self.launches += 1
        if self.launches == 1:
            x, prediction = self.memory[x_ptr], self.memory[prediction_ptr]
            assert len(x) == n
            x[:] = self.factor * table_step(x, prediction, self.memory[table_ptr])[0]

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def synchronize(self) -> None: ...

    def mark(self) -> Mark:
        return Mark(self.launches / 1e3)


def test_cubins_on_checks_and_then_times() -> None:
    gpu, check, launched, graph, torch_row = cubins_on(Device())
    assert gpu == {"gpu": "a GPU", "target": "sm90"}
    assert check["max_abs_error"] <= BUDGET
    assert (launched["what"], graph["what"]) == (f"{LAUNCHES} launches", f"one graph of {LAUNCHES}")
    assert launched["us_each"] == graph["us_each"] == 1.0
    assert len(graph["samples_us"]) == 50
    assert set(torch_row) == {"torch_imported"}
    assert len(TABLE_ROW) == 13


def test_cubins_on_a_gpu_that_is_wrong_times_nothing() -> None:
    rows = cubins_on(Device(factor=1.01))
    assert [next(rows), next(rows)][1]["max_abs_error"] > BUDGET
    with pytest.raises(RuntimeError, match="the cubin is wrong by"):
        next(rows)

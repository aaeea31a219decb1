"""The cubins without torch: loading, launching, a graph of 200 launches, and that torch was never imported."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from battery.part import Options, Row
from saishiki.runtime.backends.cuda import CudaDevice
from saishiki.runtime.backends.sampler_kernel import StepMemory, launch_step

ELEMENTS = 3 * 256 * 256
BUDGET = 1e-5
ROW = (1, 1, 1.25, -0.75, -1, 1, 0, 0.9, 0.3, 0, 0, 0, 1)
WARMUP, RUNS, LAUNCHES = 20, 50, 200


def cubins(options: Options) -> Iterator[Row]:
    """The sampler kernel on GPU 0."""
    device = CudaDevice(0)
    try:
        yield from cubins_on(device)
    finally:
        device.close()


def cubins_on(device: Any) -> Iterator[Row]:
    """Checked in numpy first; raises ``RuntimeError`` where it is wrong."""
    yield {"gpu": device.name, "target": device.target}
    arrays = np.random.default_rng(0).standard_normal((2, ELEMENTS), dtype=np.float32)
    row = np.array([ROW], np.float32)
    x, eps, table = (device.allocate(nbytes) for nbytes in (arrays[0].nbytes, arrays[1].nbytes, row.nbytes))
    for memory, array in zip((x, eps, table), (*arrays, row), strict=True):
        device.upload(memory, array)

    def launch() -> None:
        launch_step(device, StepMemory(x, eps, table, ELEMENTS), 0)

    start = time.perf_counter()
    launch()
    device.synchronize()
    first_s = round(time.perf_counter() - start, 4)
    result = np.empty(ELEMENTS, np.float32)
    device.download(x, result)
    expected = 0.9 * ((arrays[0] - 0.6 * arrays[1]) / 0.8).clip(-1, 1) + 0.3 * arrays[1]
    error = float(np.abs(result - expected).max())
    yield {"what": "cubin launch", "max_abs_error": error, "budget": BUDGET, "first_s": first_s}
    if not error <= BUDGET:
        raise RuntimeError(f"the cubin is wrong by {error}")

    def launches() -> None:
        for _ in range(LAUNCHES):
            launch()

    for name, run in ((f"{LAUNCHES} launches", launches), (f"one graph of {LAUNCHES}", device.capture(launches))):
        yield {"what": name, **_each_us(device, run)}
    yield {"torch_imported": "torch" in sys.modules}


def _each_us(device: Any, run: Callable[[], Any]) -> Row:
    """Device time of one launch among many, with the samples."""
    samples = [_marked_ms(device, run) * 1e3 / LAUNCHES for _ in range(WARMUP + RUNS)][WARMUP:]
    return {"us_each": round(sorted(samples)[RUNS // 2], 3), "samples_us": [round(s, 3) for s in samples]}


def _marked_ms(device: Any, run: Callable[[], Any]) -> float:
    before = device.mark()
    run()
    after = device.mark()
    after.wait()
    return float(after.ms_since(before))

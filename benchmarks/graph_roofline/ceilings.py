"""What this machine does at best, measured now: bytes copied and matrix operations, per second.

On a CPU with all of torch's threads: the fastest of several copies of 256 MB, read and written, and of several
products of two fp32 matrices. On a GPU: :class:`gpu_clock.GpuClock`, in fp16 with sums in fp32. Operations outside
matrix products have no measured ceiling and bound nothing. A busy machine has low ceilings, so they are measured more
than once, and the higher count: :func:`higher`.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_clock import Ceilings, GpuClock
from roofline import Roofline, Work, roofline

REPEATS = 10


def measured_ceilings(device: str, *, nbytes: int = 256 << 20, size: int = 2048) -> Ceilings:
    """The ceilings of ``cpu`` or ``cuda``; the sizes are those of the CPU's copy and product."""
    if device == "cuda":
        return GpuClock().ceilings()
    source = torch.arange(nbytes // 4, dtype=torch.int32)
    target = torch.empty_like(source)
    a, b = torch.rand(2, size, size)
    out = torch.empty(size, size)
    copy_s = _least_s(lambda: target.copy_(source))
    product_s = _least_s(lambda: torch.mm(a, b, out=out))
    return Ceilings(bandwidth=2 * nbytes / copy_s, matrix_flops=2 * size**3 / product_s)


def higher(a: Ceilings, b: Ceilings) -> Ceilings:
    """The higher of each ceiling."""
    return Ceilings(max(a.bandwidth, b.bandwidth), max(a.matrix_flops, b.matrix_flops))


def floor_of(work: Work, ceilings: Ceilings) -> Roofline:
    """The least time by measured ceilings."""
    return roofline(work, matrix_flops=ceilings.matrix_flops, vector_flops=math.inf, bandwidth=ceilings.bandwidth)


def _least_s(run: Callable[[], Any]) -> float:
    run()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)

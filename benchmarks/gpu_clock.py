"""Times on a GPU: by CUDA events, each run alone behind a flushed L2 cache, p50, p90 and p99 of n after warm-up runs.

``replayed`` is the run as a CUDA graph: what the device needs, launched by nobody. ``launched`` is the same called from
Python: what eager code sees. The flush reads 256 MB before every run: a write would leave a cache of lines that the run
then has to wait for as they are written back. It also keeps the device busy while the host launches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

FLUSH_BYTES = 256 << 20
WARMUP, RUNS = 20, 100
PERCENTILES = (50, 90, 99)

Run = Callable[[], Any]
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Ceilings:
    """What this GPU did just now: copied bytes, read and written, and fp16 matrix operations, per second."""

    bandwidth: float
    matrix_flops: float


def percentiles_us(times_ms: list[float]) -> Figures:
    """p50, p90 and p99 in microseconds."""
    ordered = sorted(times_ms)
    return {f"p{q}_us": round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)] * 1e3, 2) for q in PERCENTILES}


def captured(run: Run) -> Run:
    """``run`` as one CUDA graph, recorded after three runs; a replay returns what the recording did, filled anew."""
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Any:
        graph.replay()
        return out

    return replay


class GpuClock:
    """Owns the memory whose reading flushes the L2 cache."""

    def __init__(self, device: str = "cuda", flush_bytes: int = FLUSH_BYTES) -> None:
        self._flush = torch.zeros(flush_bytes // 4, dtype=torch.int32, device=device)

    def launched(self, run: Run) -> Figures:
        """Times of ``run``, called from Python."""
        for _ in range(WARMUP):
            run()
        return percentiles_us([self._once_ms(run) for _ in range(RUNS)])

    def replayed(self, run: Run) -> Figures:
        """Times of ``run`` as a CUDA graph."""
        return self.launched(captured(run))

    def _once_ms(self, run: Run) -> float:
        events: Any = torch.cuda.Event
        begin, end = events(enable_timing=True), events(enable_timing=True)
        self._flush.sum()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def ceilings(self, nbytes: int = 1 << 30, size: int = 8192) -> Ceilings:
        """Of a copy, and of a product of two fp16 matrices of random numbers, ``size`` by ``size``."""
        source = torch.randint(0, 255, (nbytes,), dtype=torch.uint8, device=self._flush.device)
        target = torch.empty_like(source)
        copy = self.launched(lambda: target.copy_(source))["p50_us"]
        a, b = (torch.randn(size, size, device=self._flush.device).half() for _ in range(2))
        product = self.launched(lambda: a @ b)["p50_us"]
        return Ceilings(bandwidth=2 * nbytes / copy * 1e6, matrix_flops=2 * size**3 / product * 1e6)


def launches_of(run: Run) -> int | None:
    """How many kernels and copies the GPU runs for ``run``, by the profiler; None where it sees none."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    events: Any = profiler.events()
    return sum(event.device_type.name == "CUDA" for event in events) or None

"""The clock on a GPU that is only pretended: what is enqueued between two events, and how often."""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")

import gpu_clock  # noqa: E402
from gpu_clock import RUNS, WARMUP, GpuClock, launches_of, percentiles_us  # noqa: E402

LOG: list[str] = []


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        LOG.append("event")

    def synchronize(self) -> None:
        LOG.append("synchronize")

    def elapsed_time(self, end: "Event") -> float:
        return 0.25


class Context:
    def __init__(self, *arguments: Any) -> None:
        pass

    def __enter__(self) -> None:
        LOG.append("record")

    def __exit__(self, *error: Any) -> None:
        LOG.append("recorded")

    def synchronize(self) -> None:
        pass

    def replay(self) -> None:
        LOG.append("replay")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> GpuClock:
    LOG.clear()
    for name, fake in {
        "Event": Event,
        "Stream": Context,
        "stream": Context,
        "CUDAGraph": Context,
        "graph": Context,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return GpuClock("cpu", flush_bytes=16)


def test_every_run_is_timed_alone_and_after_a_warm_up(clock: GpuClock) -> None:
    figures = clock.launched(lambda: LOG.append("run"))
    assert figures == {"p50_us": 250.0, "p90_us": 250.0, "p99_us": 250.0}
    assert LOG == ["run"] * WARMUP + ["event", "run", "event", "synchronize"] * RUNS


def test_the_cache_is_flushed_before_every_run(clock: GpuClock) -> None:
    clock._flush = SimpleNamespace(sum=lambda: LOG.append("flush"))
    clock.launched(lambda: LOG.append("run"))
    assert LOG[WARMUP:] == ["flush", "event", "run", "event", "synchronize"] * RUNS


def test_a_graph_is_recorded_once_and_replayed(clock: GpuClock) -> None:
    clock.replayed(lambda: LOG.append("run"))
    recorded = ["record", "run", "run", "run", "recorded", "record", "run", "recorded"]
    assert recorded + ["replay"] * WARMUP + ["event", "replay", "event", "synchronize"] * RUNS == LOG


def test_ceilings_count_bytes_read_and_written(clock: GpuClock) -> None:
    ceilings = clock.ceilings(nbytes=1000, size=10)
    assert ceilings.bandwidth == pytest.approx(2000 / 250e-6)
    assert ceilings.matrix_flops == pytest.approx(2000 / 250e-6)


@pytest.mark.parametrize(
    ("seen", "launches"), [([], None), (["CPU"], None), (["CPU", "CUDA", "CUDA"], 2)], ids=["nothing", "host", "two"]
)
def test_launches_are_what_the_profiler_saw(
    monkeypatch: pytest.MonkeyPatch, seen: list[str], launches: int | None
) -> None:
    class Profile(Context):
        def __enter__(self) -> Any:
            return self

        def events(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(device_type=SimpleNamespace(name=name)) for name in seen]

    monkeypatch.setattr(gpu_clock, "profile", lambda activities: Profile())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert launches_of(lambda: None) == launches


def test_percentiles_are_in_microseconds_and_ordered() -> None:
    assert percentiles_us([i / 1e3 for i in range(100, 0, -1)]) == {"p50_us": 51.0, "p90_us": 91.0, "p99_us": 100.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_clock_on_a_gpu() -> None:
    clock = GpuClock()
    x = torch.randn(4096, 4096, device="cuda")
    assert launches_of(lambda: x + 1) == 1
    assert 0 < clock.replayed(lambda: x + 1)["p50_us"] < 1e4

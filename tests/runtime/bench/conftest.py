"""A clock that moves only when told to, reports made of plain numbers, and backends that behave as a test says."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend
from saishiki.runtime.bench.images import row_of
from saishiki.runtime.bench.plan import QUICK, Plan
from saishiki.runtime.bench.schema import (
    SCHEMA_VERSION,
    BundleIdentity,
    Environment,
    GpuState,
    Memory,
    Report,
    Row,
    RunnerResult,
)
from saishiki.runtime.bench.session import stability_of
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Certificate

SIZES = {"batch": 1, "height": 32, "width": 32, "steps": 10}


class FakeClock:
    """Seconds that pass only in :meth:`pass_ms`."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_ms(self, ms: float) -> float:
        self.now += ms / 1e3
        return ms

    def runs_taking(self, times_ms: Sequence[float]) -> Callable[[], float]:
        """A run that takes one time after the other, and the last for ever."""
        left = list(times_ms)
        return lambda: self.pass_ms(left.pop(0) if len(left) > 1 else left[0])


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def make_row(subject: Any, samples: Sequence[float], **fields: Any) -> Row:
    return replace(row_of(subject, SIZES, list(samples)), **fields)


def make_runner(image_ms: Sequence[float] = (10.0, 10.2, 10.4), *, backend: str = "onnxruntime", rows: Any = ()) -> Any:
    image, again = make_row("image", image_ms), make_row("image again", image_ms)
    return RunnerResult(
        backend=backend,
        device="cpu",
        precision="fp32",
        parity=Certificate("passed", backend, {}, (), ()),
        rows=(image, again, *rows),
        memory=Memory(1000, None, None, None),
        stability=stability_of(image, again),
    )


def make_report(*runners: RunnerResult, **fields: Any) -> Report:
    report = Report(
        schema_version=SCHEMA_VERSION,
        started="2026-01-02T03:04:05+00:00",
        seconds=1.0,
        quick=False,
        bundle=BundleIdentity("digest", "animediffusion", "custom", ("batch 1",), "0", "a.ckpt", "checkpoint-hash", {}),
        environment=Environment("a processor", 2, None, 1, 0.1, "Linux", "3.11", {"numpy": "2"}, (), ()),
        runners=runners or (make_runner(),),
        skipped={"tensorrt:cuda": "no GPU"},
        notes=(),
    )
    return replace(report, **fields)


def make_gpu(**fields: Any) -> GpuState:
    return replace(GpuState("H200", "580", 1980, 3201, 700.0, 40, 1 << 30), **fields)


@pytest.fixture
def made() -> SimpleNamespace:
    """The functions of this file; test files cannot import one another."""
    return SimpleNamespace(row=make_row, runner=make_runner, report=make_report, gpu=make_gpu, sizes=SIZES)


@pytest.fixture
def opened(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def quick() -> Plan:
    """As little as there can be."""
    return QUICK


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime on one thread, so that tests that run side by side do not wait for one another."""
    plain = OnnxRuntimeBackend.__init__
    monkeypatch.setattr(
        OnnxRuntimeBackend, "__init__", lambda self, *, device, threads=1: plain(self, device=device, threads=threads)
    )

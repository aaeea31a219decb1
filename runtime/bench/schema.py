"""The result file of ``saishiki bench``: plain data, versioned, explained in ``docs/benchmark_schema.md``.

Every time is in milliseconds unless its name says otherwise, and every row keeps its samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from saishiki.runtime.backends.protocol import Clock
from saishiki.runtime.bench.measure import Warmup
from saishiki.runtime.bench.summary import Summary
from saishiki.runtime.errors import SaishikiError
from saishiki.runtime.manifest import Certificate, Precision

SCHEMA_VERSION = 1

Subject = Literal[
    "module",
    "image",
    "image again",
    "step",
    "step engine",
    "step host overhead",
    "around the steps",
    "load",
    "first image",
    "cold start",
    "batch",
    "callers",
]


@dataclass(frozen=True)
class Row:
    """One subject's samples on one runner.

    Args:
        part: the module, or the stage of the cold start; empty where the subject has no parts.
        sizes: batch, height, width, steps, callers: what the subject depends on.
        clock: ``device`` for a device's own events, ``host`` for this machine's clock.
        warmup: None where a warm-up would defeat the purpose (loads, first images, cold starts) and for callers.
        images_per_s: for batch and callers.
    """

    subject: Subject
    part: str
    sizes: Mapping[str, int]
    clock: Clock
    warmup: Warmup | None
    summary: Summary
    images_per_s: float | None
    samples_ms: tuple[float, ...]

    def __str__(self) -> str:
        sizes = " ".join(f"{name} {size}" for name, size in self.sizes.items())
        return ", ".join(text for text in (self.subject, self.part, sizes) if text)


@dataclass(frozen=True)
class Memory:
    """Bytes of memory; None for what cannot be told.

    Args:
        weights_bytes: files that hold the modules' weights, in this precision.
        activations_bytes: the scratch memory that the engines state.
        peak_rss_bytes: the largest resident size of a fresh process that made one image.
        gpu_bytes: what the GPU had less free after the first image than before loading, of all processes.
    """

    weights_bytes: int
    activations_bytes: int | None
    peak_rss_bytes: int | None
    gpu_bytes: int | None


@dataclass(frozen=True)
class Stability:
    """The whole image measured twice, before and after all else: whether the medians agree within ``allowed``."""

    first_p50_ms: float
    again_p50_ms: float
    difference: float
    allowed: float
    agree: bool


@dataclass(frozen=True)
class PlannedOp:
    """One operation of a plan: what it touches besides weights, what it costs, and how long it takes.

    Args:
        modelled_us: by GPU, in microseconds: a model, not a measurement.
        samples_us: of the operation alone, by device events; empty where nothing ran it.
    """

    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    flops: int
    bytes: int
    modelled_us: Mapping[str, float]
    samples_us: tuple[float, ...] = ()


@dataclass(frozen=True)
class PlanResult:
    """A module's plan at sizes that the bundle is tuned for.

    Args:
        sha256: of the plan's file.
        arena_bytes: what its buffers take, laid out so that they share memory; no layout takes less than
            ``arena_least_bytes``.
    """

    module: str
    sha256: str
    dtype: str
    sizes: Mapping[str, int]
    arena_bytes: int
    arena_least_bytes: int
    ops: tuple[PlannedOp, ...]


@dataclass(frozen=True)
class RunnerResult:
    """All rows of one backend on one device in one precision, and the parity it passed first.

    Args:
        plans: of each module that runs by one, as it is run here; empty for backends that run none.
    """

    backend: str
    device: str
    precision: Precision
    parity: Certificate
    rows: tuple[Row, ...]
    memory: Memory
    stability: Stability
    plans: tuple[PlanResult, ...] = ()

    @property
    def name(self) -> str:
        """Such as ``onnxruntime:cpu:fp32``."""
        return f"{self.backend}:{self.device}:{self.precision}"


@dataclass(frozen=True)
class GpuState:
    """A GPU as ``nvidia-smi`` describes it at one moment; None for what it does not tell."""

    name: str
    driver: str
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    power_limit_w: float | None
    temperature_c: int | None
    memory_used_bytes: int | None


@dataclass(frozen=True)
class Environment:
    """The machine, and the versions of what ran on it.

    Args:
        cores: those this process may use.
        cpu_mhz: the mean over them before the measurement; None where the system does not tell.
        load_average: of the last minute, before the measurement.
        gpus_before: one for every GPU; the same after, in ``gpus_after``.
    """

    processor: str
    cores: int
    cpu_mhz: float | None
    memory_bytes: int
    load_average: float
    platform: str
    python: str
    packages: Mapping[str, str]
    gpus_before: tuple[GpuState, ...]
    gpus_after: tuple[GpuState, ...]


@dataclass(frozen=True)
class BundleIdentity:
    """Which bundle: the digest of its manifest, the checkpoint behind it, and the sizes it was exported for."""

    digest: str
    family: str
    variant: str
    profiles: tuple[str, ...]
    saishiki_version: str
    checkpoint: str
    checkpoint_sha256: str
    checkpoint_metadata: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """A result file.

    Args:
        started: in UTC, ISO 8601.
        quick: a smoke run: few samples and few steps, which nothing should be concluded from.
        skipped: why a backend was not measured.
        notes: what weakens the figures, in words; empty where nothing does.
        plans: of the bundle's modules, as they are written; nothing ran these.
    """

    schema_version: int
    started: str
    seconds: float
    quick: bool
    bundle: BundleIdentity
    environment: Environment
    runners: tuple[RunnerResult, ...]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]
    plans: tuple[PlanResult, ...] = ()


def json_from_report(report: Report) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def read_report(path: Path) -> Report:
    """The report in a file; raises ``SaishikiError`` where it is none, or of another version of the schema."""
    text = path.read_bytes()
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
        if (version := fields.get("schema_version")) != SCHEMA_VERSION:
            raise SaishikiError(
                f"{path}: schema version {version!r}, expected {SCHEMA_VERSION}; "
                "measure again with: saishiki bench BUNDLE --output FILE"
            )
        return msgspec.convert(fields, Report)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SaishikiError(
            f"{path}: not a result of saishiki bench ({error}); make one with: saishiki bench BUNDLE --output FILE"
        ) from error

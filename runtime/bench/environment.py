"""The machine that a benchmark ran on: processor, memory, GPUs as ``nvidia-smi`` sees them, and package versions."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from saishiki.runtime.bench.schema import Environment, GpuState

PACKAGES = (
    "saishiki",
    "numpy",
    "pillow",
    "msgspec",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt-rtx",
    "tensorrt",
    "cuda-core",
    "cuda-bindings",
)
GPU_FIELDS = ("name", "driver_version", "clocks.sm", "clocks.mem", "power.limit", "temperature.gpu", "memory.used")
_PATIENCE_S = 20

_Number = TypeVar("_Number", int, float)


def describe_environment() -> Environment:
    """This machine now; ``gpus_after`` is what ``gpus_before`` is until somebody measures it again."""
    gpus = read_gpus()
    return Environment(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        cpu_mhz=_cpu_mhz(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load_average=round(os.getloadavg()[0], 2),
        platform=platform.platform(),
        python=platform.python_version(),
        packages=_versions(PACKAGES),
        gpus_before=gpus,
        gpus_after=gpus,
    )


def read_gpus() -> tuple[GpuState, ...]:
    """Every GPU that this process may use, in its own numbering; none where there is no ``nvidia-smi``."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        command += ["-i", visible]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE_S)
    except subprocess.SubprocessError:  # it failed, or hangs with its driver
        return ()
    return gpus_from_csv(done.stdout)


def gpus_from_csv(text: str) -> tuple[GpuState, ...]:
    """The answer of ``nvidia-smi`` to :data:`GPU_FIELDS`, one GPU a line."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    return tuple(_gpu(row) for row in rows if len(row) == len(GPU_FIELDS))


def _gpu(cells: list[str]) -> GpuState:
    name, driver, sm_clock, memory_clock, power_limit, temperature, memory_used = cells
    used_mib = _number(memory_used, int)
    return GpuState(
        name=name,
        driver=driver,
        sm_clock_mhz=_number(sm_clock, int),
        memory_clock_mhz=_number(memory_clock, int),
        power_limit_w=_number(power_limit, float),
        temperature_c=_number(temperature, int),
        memory_used_bytes=None if used_mib is None else used_mib << 20,
    )


def _number(cell: str, kind: type[_Number]) -> _Number | None:
    """The number, or None for ``[N/A]`` and the like."""
    try:
        return kind(cell)
    except ValueError:
        return None


def _processor() -> str:
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_mhz() -> float | None:
    clocks = [float(value) for value in _cpuinfo("cpu MHz")]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def _cpuinfo(field: str) -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field]


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

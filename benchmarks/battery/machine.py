"""Parts that ask the machine or run what others wrote: its versions, the ``gpu`` tests, the kernel benchmark."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator

from battery.checkout import ROOT
from battery.part import Options, Row

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt-rtx",
    "tensorrt",
    "cuda-core",
    "cuda-bindings",
    "msgspec",
    "onnx-ir",
    "onnxscript",
    "nvidia-cudnn-cu13",
    "nvidia-cudnn-frontend",
)
WORDS = 4000  # characters kept of what a process printed


def environment(options: Options) -> Iterator[Row]:
    """Versions of everything, the GPU's own words, and why a backend is not there."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    yield {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count(), **versions}
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,compute_cap"
    with contextlib.suppress(FileNotFoundError):
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        yield {"nvidia_smi": subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()}
    from executor_window.cudnn_library import why_no_cudnn

    from saishiki.runtime.backends.cuda import driver_problem
    from saishiki.runtime.backends.tensorrt import PACKAGES as TENSORRTS
    from saishiki.runtime.backends.tensorrt import why_unavailable

    reasons = {name: why_unavailable(name) for name in TENSORRTS} | {"cudnn-frontend": why_no_cudnn()}
    yield {"driver_problem": driver_problem(), **{name: why or "available" for name, why in reasons.items()}}


def gpu_tests(options: Options) -> Iterator[Row]:
    """``pytest -m gpu``; a dry run collects those of one folder."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-m", "gpu", "-o", "addopts=--import-mode=importlib"]
    folders = [str(ROOT / "tests" / "kernels"), str(ROOT / "tests" / "runtime" / "backends")]
    what = ["--collect-only", folders[1]] if options.dry_run else folders
    done = subprocess.run([*command, *what], cwd=ROOT, capture_output=True, text=True, check=False)
    yield {"returncode": done.returncode, "output": done.stdout[-WORDS:], "errors": done.stderr[-WORDS:]}
    if done.returncode:
        raise RuntimeError(f"pytest -m gpu ended with status {done.returncode}")


def kernels(options: Options) -> Iterator[Row]:
    """Every op of ``saishiki.kernels``: its test at real shapes, its speed and its rivals; see ``bench_kernels.py``."""
    from kernel_bench.cases import CASES, TINY_CASES
    from kernel_bench.measure import measured_rows, open_bench, red_rows

    bench = open_bench(dry_run=options.dry_run)
    yield {"what": "ceilings", **bench.row}
    rows = []
    for row in measured_rows(TINY_CASES if options.dry_run else CASES, bench):
        rows.append(row)
        yield row
    if red := red_rows(rows):
        raise RuntimeError(f"red: {'; '.join(red)}")

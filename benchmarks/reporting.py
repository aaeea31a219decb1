"""How a benchmark reports: its figures, and what they depend on - commit, machine, versions - as one JSON object."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("saishiki", "numpy", "torch", "onnx", "onnxruntime", "tensorrt-rtx", "triton")


def report(result: Mapping[str, Any], output: Path | None) -> None:
    """Prints a result, and writes it to a file where one is given."""
    text = json.dumps(result, indent=2)
    print(text)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n")


def describe_machine() -> dict[str, str | int | None]:
    """Commit, processor, cores, Python and package versions; None for a package that is not installed."""
    return {
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _commit() -> str:
    """The commit that is checked out, with ``+changes`` where files other than results differ from it.

    ``unknown`` without git or without its history, as on a machine that was sent a copy.
    """
    if shutil.which("git") is None:
        return "unknown"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    changes = git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
    return commit + ("+changes" if changes else "") if commit else "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Beginnings: loading a bundle, the first image after it, and the first image of a fresh process."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import msgspec

from saishiki.runtime.bench.images import Task, row_of
from saishiki.runtime.bench.pictures import SEED
from saishiki.runtime.bench.plan import Plan
from saishiki.runtime.bench.runners import Runner
from saishiki.runtime.bench.schema import Row
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.colorizer import Colorizer
from saishiki.runtime.errors import BackendError
from saishiki.runtime.images import write_image

CHILD = Path(__file__).with_name("first_image.py")
TOTAL, EMPTY_CACHE = "total", "total, empty kernel cache"
COMPILES_AT_FIRST_RUN = ("tensorrt-rtx",)
"""Backends that compile kernels on the GPU they meet and keep them in the user's cache folder."""


def load_rows(bundle: Bundle, runner: Runner, task: Task, plan: Plan) -> tuple[Row, ...]:
    """Loading in this process, whose libraries and files are warm, and the first image after each load."""
    loads, firsts = [], []
    for _ in range(plan.starts):
        begin = perf_counter()
        with Colorizer.load(
            bundle, backend=runner.backend, device=runner.device, precision=runner.precision
        ) as colorizer:
            loaded = perf_counter()
            task(colorizer)
            firsts.append((perf_counter() - loaded) * 1e3)
        loads.append((loaded - begin) * 1e3)
    return row_of("load", {}, loads), row_of("first image", task.sizes(), firsts)


@dataclass(frozen=True)
class FirstImage:
    """What the fresh process reports."""

    marks_ns: Mapping[str, int]
    peak_rss_bytes: int | None


@dataclass(frozen=True)
class ColdStarts:
    """Rows per stage and in total, and the largest resident size of such a process."""

    rows: tuple[Row, ...]
    peak_rss_bytes: int | None


def cold_starts(bundle: Bundle, runner: Runner, task: Task, plan: Plan) -> ColdStarts:
    """Fresh processes from their start to their first image; files are in the page cache, kernels in the user's."""
    with tempfile.TemporaryDirectory() as folder:
        write_image(Path(folder, "sketch.png"), task.sketch)
        write_image(Path(folder, "reference.png"), task.reference)
        runs = [_start(bundle, runner, task, Path(folder), {}) for _ in range(plan.starts)]
        rows = _rows_of([stages for stages, _ in runs], task)
        if runner.backend in COMPILES_AT_FIRST_RUN:
            stages, _ = _start(bundle, runner, task, Path(folder), {"XDG_CACHE_HOME": str(Path(folder, "cache"))})
            rows += (row_of("cold start", task.sizes(), [stages[TOTAL]], part=EMPTY_CACHE),)
    peaks = [peak for _, peak in runs if peak is not None]
    return ColdStarts(rows, max(peaks, default=None))


def _rows_of(runs: list[dict[str, float]], task: Task) -> tuple[Row, ...]:
    return tuple(row_of("cold start", task.sizes(), [run[part] for run in runs], part=part) for part in runs[0])


def _start(
    bundle: Bundle, runner: Runner, task: Task, folder: Path, environment: Mapping[str, str]
) -> tuple[dict[str, float], int | None]:
    command = [sys.executable, "-P", str(CHILD), str(bundle.path.absolute())]
    command += [runner.backend, runner.device, runner.precision, str(folder), str(task.steps), str(SEED)]
    begin_ns = time.monotonic_ns()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BackendError(f"{runner}: a fresh process makes no image: {reason[0]}")
    first = msgspec.json.decode(done.stdout, type=FirstImage)
    return stages_ms(begin_ns, first.marks_ns), first.peak_rss_bytes


def stages_ms(begin_ns: int, marks_ns: Mapping[str, int]) -> dict[str, float]:
    """How long each stage took, and all of them together."""
    ends = [begin_ns, *marks_ns.values()]
    stages = {name: (end - start) / 1e6 for name, start, end in zip(marks_ns, ends, ends[1:], strict=False)}
    return stages | {TOTAL: (ends[-1] - begin_ns) / 1e6}

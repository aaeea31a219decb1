"""Beginnings: loading a bundle, the first image after it, and the first image of a fresh process."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Literal

import msgspec

from saishiki.runtime.bench.images import Task, row_of
from saishiki.runtime.bench.measure import Seconds
from saishiki.runtime.bench.pictures import SEED
from saishiki.runtime.bench.plan import Plan
from saishiki.runtime.bench.runners import Runner
from saishiki.runtime.bench.schema import Row
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError
from saishiki.runtime.images import write_image

CHILD = Path(__file__).with_name("first_image.py")
TOTAL, FIRST_IMAGE = "total", "first image"
EMPTY_CACHE, FILLED_CACHE = "empty kernel cache", "kernel cache of the first"
COMPILES_AT_FIRST_RUN = ("tensorrt-rtx",)
"""Backends that compile kernels on the GPU they meet and keep them in the user's cache folder."""


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
    with _pictures(task) as folder:
        runs = _repeated(_Start(bundle, runner, task, folder, "cold"), plan)
    rows = _rows_of([stages for stages, _ in runs], task)
    if runner.backend in COMPILES_AT_FIRST_RUN:
        rows += kernel_cache_rows(bundle, runner, task, cached=0)
    peaks = [peak for _, peak in runs if peak is not None]
    return ColdStarts(rows, max(peaks, default=None))


def kernel_cache_rows(bundle: Bundle, runner: Runner, task: Task, *, cached: int) -> tuple[Row, ...]:
    """The first image of a process that finds no compiled kernels, then of ``cached`` more that find its own."""
    with _pictures(task) as folder:
        start = _Start(bundle, runner, task, folder, "cold")
        runs = [start({"SAISHIKI_CACHE": str(folder / "cache")})[0] for _ in range(1 + cached)]
    caches = {EMPTY_CACHE: runs[:1], FILLED_CACHE: runs[1:]}
    return tuple(
        row_of("cold start", task.sizes(), [run[stage] for run in found], part=f"{stage}, {cache}")
        for cache, found in caches.items()
        for stage in (FIRST_IMAGE, TOTAL)
        if found
    )


def load_rows(bundle: Bundle, runner: Runner, task: Task, plan: Plan) -> tuple[Row, ...]:
    """Loading where libraries and files are warm, and the first image after it, each in a fresh process.

    A process of its own for each sample, since what differs from one process to the next, the placement of its memory
    and threads above all, stays the same within one.
    """
    with _pictures(task) as folder:
        start = _Start(bundle, runner, task, folder, "warm")
        runs = [stages for stages, _ in _repeated(start, plan)]
    loads, firsts = ([run[stage] for run in runs] for stage in ("load", FIRST_IMAGE))
    return row_of("load", {}, loads), row_of("first image", task.sizes(), firsts)


def _rows_of(runs: list[dict[str, float]], task: Task) -> tuple[Row, ...]:
    return tuple(row_of("cold start", task.sizes(), [run[part] for run in runs], part=part) for part in runs[0])


@contextmanager
def _pictures(task: Task) -> Iterator[Path]:
    """A folder with the task's sketch and reference."""
    with tempfile.TemporaryDirectory() as folder:
        write_image(Path(folder, "sketch.png"), task.sketch)
        write_image(Path(folder, "reference.png"), task.reference)
        yield Path(folder)


Started = tuple[dict[str, float], int | None]


def _repeated(start: Callable[[], Started], plan: Plan, clock: Seconds = perf_counter) -> list[Started]:
    """As many starts as the plan wants and its seconds allow."""
    begin, runs = clock(), [start()]
    while len(runs) < plan.most_starts and (len(runs) < plan.least_starts or clock() - begin < plan.starts_s):
        runs.append(start())
    return runs


@dataclass(frozen=True)
class _Start:
    """A fresh process that makes an image; a call returns its stages in milliseconds and its peak resident bytes."""

    bundle: Bundle
    runner: Runner
    task: Task
    folder: Path
    libraries: Literal["cold", "warm"]

    def __call__(self, environment: Mapping[str, str] = MappingProxyType({})) -> Started:
        begin_ns = time.monotonic_ns()
        done = subprocess.run(
            self._command(), capture_output=True, text=True, check=False, env=os.environ | dict(environment)
        )
        if done.returncode != 0:
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise BackendError(f"{self.runner}: a fresh process makes no image: {reason[0]}")
        first = msgspec.json.decode(done.stdout, type=FirstImage)
        return stages_ms(begin_ns, first.marks_ns), first.peak_rss_bytes

    def _command(self) -> list[str]:
        runner = self.runner
        command = [sys.executable, "-P", str(CHILD), str(self.bundle.path.absolute())]
        command += [runner.backend, runner.device, runner.precision, str(self.folder)]
        return [*command, str(self.task.steps), str(SEED), self.libraries]


def stages_ms(begin_ns: int, marks_ns: Mapping[str, int]) -> dict[str, float]:
    """How long each stage took, and all of them together."""
    ends = [begin_ns, *marks_ns.values()]
    stages = {name: (end - start) / 1e6 for name, start, end in zip(marks_ns, ends, ends[1:], strict=False)}
    return stages | {TOTAL: (ends[-1] - begin_ns) / 1e6}

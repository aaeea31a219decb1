"""Bundles under pytest-benchmark: exports, modules, images and their steps, starts, batches, callers and memory.

    pytest benchmarks/test_bundles.py --benchmark-enable --benchmark-json bundles.json

One row per test, by :mod:`bundle_bench.replay`: the figures are those of ``saishiki bench``, with its warm-up until
the medians stand still, its device events and its samples. Nothing is timed on a backend whose parity vectors are red:
the test fails instead. What does not run here is skipped, and says what it needs. Without ``--benchmark-enable`` each
runs once on a tiny bundle, which shows that it works.

What is measured is declared in ``bundle_bench/declarations.py``: bundles and backends.
"""

from typing import Any

import pytest
from bundle_bench.declarations import Declaration
from bundle_bench.exports import Exports
from bundle_bench.measured import Measured
from bundle_bench.replay import replay, replayed_time

from saishiki.runtime.bench.starts import COMPILES_AT_FIRST_RUN, EMPTY_CACHE

IMAGE_SUBJECTS = ("image", "step", "step engine", "step host overhead", "around the steps")
COLD_STAGES = ("interpreter", "import", "load", "first image", "total")
CALLERS = 2

pytestmark = pytest.mark.slow

replayed = pytest.mark.benchmark(timer=replayed_time)


def test_export(declaration: Declaration, exports: Exports, benchmark: Any) -> None:
    """The whole command, in a process of its own; its bundle is what the rows below are of."""
    benchmark.group = "export"
    figures = benchmark.pedantic(exports.measured, args=(declaration,), rounds=1, iterations=1)
    assert figures["verdict"] == "passed"
    assert figures["peak_rss_gb"] > 0
    benchmark.extra_info |= figures


@replayed
@pytest.mark.parametrize("name", IMAGE_SUBJECTS)
def test_image(name: str, measured: Measured, benchmark: Any) -> None:
    benchmark.group = name
    replay(benchmark, measured.row("images", name))


@replayed
def test_module(module: str, measured: Measured, benchmark: Any) -> None:
    benchmark.group = f"module {module}"
    replay(benchmark, measured.row("modules", "module", module))


@replayed
@pytest.mark.parametrize("name", ["load", "first image"])
def test_load(name: str, measured: Measured, benchmark: Any) -> None:
    benchmark.group = name
    replay(benchmark, measured.row("load", name))


@replayed
@pytest.mark.parametrize("stage", COLD_STAGES)
def test_cold_start(stage: str, measured: Measured, benchmark: Any) -> None:
    """From the start of a process; with the total, the memory that such a process and its engines take."""
    benchmark.group = f"cold start, {stage}"
    memory = {"memory": measured.memory()} if stage == "total" else {}
    replay(benchmark, measured.row("cold_start", "cold start", stage), **memory)


@replayed
@pytest.mark.parametrize("stage", ["first image", "total"])
def test_kernel_cache(stage: str, measured: Measured, benchmark: Any) -> None:
    """The same where no kernel is compiled yet."""
    if measured.runner.backend not in COMPILES_AT_FIRST_RUN:
        pytest.skip(f"{measured.runner.backend} compiles no kernels at its first run")
    part = f"{stage}, {EMPTY_CACHE}"
    benchmark.group = f"cold start, {part}"
    replay(benchmark, measured.row("cold_start", "cold start", part))


@replayed
def test_batch(declaration: Declaration, measured: Measured, benchmark: Any) -> None:
    benchmark.group = "batch"
    replay(benchmark, measured.row("batches", "batch", sizes={"batch": declaration.batch}))


@replayed
def test_callers(measured: Measured, benchmark: Any) -> None:
    benchmark.group = f"{CALLERS} callers"
    replay(benchmark, measured.row("callers", "callers", sizes={"callers": CALLERS}))

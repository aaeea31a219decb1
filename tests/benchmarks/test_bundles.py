"""What the benchmarks of bundles are made of; ``pytest benchmarks`` runs them themselves."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import export_full_size
import pytest
from bundle_bench import measured as measured_module
from bundle_bench.declarations import FULL, RUNNERS, SMOKE
from bundle_bench.exports import Exports
from bundle_bench.measured import Measured, RedParityError
from bundle_bench.replay import replay, replayed_time
from export_full_size import measure_export

from saishiki.runtime.bench import QUICK, runners_named
from saishiki.runtime.bench.images import row_of
from saishiki.runtime.bench.measure import Warmup
from saishiki.runtime.bench.runners import Runner
from saishiki.runtime.bundle import Bundle
from tests.bundles import copy_bundle, perturb_weights, rewrite_file

CPU = Runner("onnxruntime", "cpu", "fp32")


class Benchmark:
    """pytest-benchmark's fixture, as far as ``pedantic`` with a timer goes."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.samples_s: list[float] = []

    def pedantic(self, target: Any, *, rounds: int, iterations: int) -> None:
        assert iterations == 1
        for _ in range(rounds):
            begin = replayed_time()
            target()
            self.samples_s.append(replayed_time() - begin)


def test_a_replayed_row_has_its_samples_and_what_is_said_of_them() -> None:
    warmup = Warmup(runs=6, change=0.01, tolerance=0.05, stable=True)
    row = row_of("batch", {"batch": 2}, [3.0, 1.0, 2.0], clock="device", warmup=warmup, images_per_s=7.0)
    benchmark = Benchmark()
    replay(benchmark, row, memory={"weights_bytes": 5})
    assert benchmark.samples_s == pytest.approx([0.003, 0.001, 0.002])
    told = {name: benchmark.extra_info[name] for name in ("clock", "sizes", "warmup_runs", "warmup_stable")}
    assert told == {"clock": "device", "sizes": {"batch": 2}, "warmup_runs": 6, "warmup_stable": True}
    assert (benchmark.extra_info["p50_ms"], benchmark.extra_info["images_per_s"]) == (2.0, 7.0)
    assert benchmark.extra_info["memory"] == {"weights_bytes": 5}


def test_a_difference_of_clocks_below_nothing_takes_no_time() -> None:
    benchmark = Benchmark()
    replay(benchmark, row_of("step host overhead", {}, [-1.0, 2.0]))
    assert benchmark.samples_s == pytest.approx([0.0, 0.002])
    assert "warmup_runs" not in benchmark.extra_info


@pytest.fixture
def one(tiny_bundle: Path) -> Any:
    measured = Measured(Bundle.open(tiny_bundle), CPU, QUICK)
    yield measured
    measured.close()


def test_rows_are_those_of_saishiki_bench(one: Measured) -> None:
    image, step = one.row("images", "image"), one.row("images", "step")
    assert image.summary.p50_ms > step.summary.p50_ms > 0
    assert one.row("images", "image") is image
    assert [row.sizes for row in one.modules if row.part == "denoiser"] == [{"batch": 1, "height": 32, "width": 32}]
    assert one.row("batches", "batch", sizes={"batch": 2}).images_per_s
    assert one.row("callers", "callers", sizes={"callers": 2}).summary.n == 2
    with pytest.raises(ValueError, match=r"no row batch  .*'batch': 3.*it has: batch, batch 2"):
        one.row("batches", "batch", sizes={"batch": 3})


def test_memory_comes_with_the_starts(one: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = SimpleNamespace(rows=(row_of("cold start", {}, [5.0], part="total"),), peak_rss_bytes=77)
    monkeypatch.setattr(measured_module, "cold_starts", lambda *_: cold)
    assert one.row("cold_start", "cold start", "total").samples_ms == (5.0,)
    memory = one.memory()
    assert (memory["peak_rss_bytes"], memory["gpu_bytes"], memory["activations_bytes"]) == (77, None, None)
    assert memory["weights_bytes"] > 1 << 20  # type: ignore[operator]


def test_what_is_red_is_not_timed(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copy_bundle(tiny_bundle, tmp_path)
    rewrite_file(copy, "onnx/denoiser.fp32.onnx.data", lambda content: perturb_weights(content, count=1 << 16))
    for name in ("cold_starts", "load_rows", "image_rows", "module_rows", "batch_rows", "caller_rows"):
        monkeypatch.setattr(measured_module, name, lambda *_: pytest.fail("timed in spite of red parity"))
    measured = Measured(Bundle.open(copy), CPU, QUICK)
    for group in ("cold_start", "load", "images", "modules", "batches", "callers"):
        with pytest.raises(RedParityError, match=r"onnxruntime:cpu:fp32: parity is red.*denoiser"):
            measured.row(group, "image")


def test_every_family_is_measured_and_has_a_smoke_run() -> None:
    families = {"AnimeDiffusion", "ColorizeDiffusion"}
    assert families == set(" ".join(full.name for full in FULL).split()) & families
    assert families == set(" ".join(smoke.name for smoke in SMOKE).split()) & families
    assert all(declaration.batch > 1 for declaration in (*FULL, *SMOKE))
    assert all(FULL[0].checkpoint(Path("unused")).is_file() for _ in FULL[:1])


def test_declared_backends_are_runners(tiny_bundle: Path) -> None:
    chosen = runners_named(Bundle.open(tiny_bundle), RUNNERS[:1])
    assert tuple(map(str, chosen.runners)) == RUNNERS[:1]
    assert all(len(name.split(":")) == 3 for name in RUNNERS)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> list[list[str]]:
    """``export-engines`` replaced by a process that copies the tiny bundle, or fails where asked for 13 pixels."""
    calls: list[list[str]] = []
    certificate = {"rows": [{"module": "denoiser", "precision": "fp32", "error": 1e-6}]}
    denoiser = {"engines": [], "graphs": {"fp16": {"weights": {"bytes": 10**9}}}}
    printed = {"verdict": "passed", "manifest": {"certificate": certificate, "modules": {"denoiser": denoiser}}}
    script = (
        "import shutil, sys; held = bytearray(64 << 20)\n"
        "if '13' in sys.argv: sys.exit('export-engines: no size 13')\n"
        f"shutil.copytree({str(tiny_bundle)!r}, sys.argv[3])\n"
        "import time; time.sleep(0.3)\n"
        f"print({json.dumps(printed)!r})\n"
    )
    plain = subprocess.Popen

    def start(given: list[str], **options: Any) -> Any:
        calls.append(given)
        return plain([sys.executable, "-c", script, *given[3:]], **options)

    monkeypatch.setattr(export_full_size.subprocess, "Popen", start)
    return calls


def test_an_export_is_measured_once(command: list[list[str]], tmp_path: Path) -> None:
    exports = Exports(tmp_path, "onnx")
    figures = exports.measured(SMOKE[0])
    assert exports.bundle(SMOKE[0]).manifest.family == "animediffusion"
    assert exports.measured(SMOKE[0]) is figures
    (words,) = command
    assert words[1:3] == ["-m", "saishiki.export"]
    assert words[6:] == ["--size", "32", "--batch", "1:2", "--targets", "onnx", "--json"]
    assert figures["verdict"] == "passed"
    assert figures["errors"] == {"denoiser fp32": 1e-6}
    assert figures["seconds"] >= 0.3
    assert 0.06 < figures["peak_rss_gb"] < 1
    assert figures["peak_rss_bound_gb"] == 3.1


def test_a_bundle_of_other_modules_than_declared_is_an_error(command: list[list[str]], tmp_path: Path) -> None:
    other = replace(SMOKE[0], modules=("denoiser",))
    with pytest.raises(ValueError, match="has the modules denoiser, its bundle denoiser, time_projection; correct it"):
        Exports(tmp_path, "onnx").bundle(other)


def test_an_export_that_fails_tells_its_last_words(command: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with status 1: export-engines: no size 13"):
        measure_export(tmp_path / "c", tmp_path / "b", tmp_path / "cache", options=("--size", "13"))

import sys
from types import SimpleNamespace

import pytest

from saishiki.runtime.bench import starts
from saishiki.runtime.bench.images import task_of
from saishiki.runtime.bench.runners import Runner
from saishiki.runtime.bench.starts import cold_starts, load_rows, stages_ms
from saishiki.runtime.errors import BackendError

CPU = Runner("onnxruntime", "cpu", "fp32")
MARKS = '{"marks_ns": {"interpreter": %d, "load": %d}, "peak_rss_bytes": %s}'


def test_stages():
    marks = {"interpreter": 3_000_000, "import": 5_000_000, "load": 5_500_000}
    assert stages_ms(1_000_000, marks) == {"interpreter": 2.0, "import": 2.0, "load": 0.5, "total": 4.5}


@pytest.fixture
def child(monkeypatch):
    """Replaces the fresh process: each start returns the next answer, and is kept with its environment."""
    calls, answers = [], []

    def run(command, *, env, **options):
        calls.append((command, env))
        return SimpleNamespace(returncode=0, stderr="", **answers.pop(0))

    monkeypatch.setattr(starts.subprocess, "run", run)
    monkeypatch.setattr(starts.time, "monotonic_ns", lambda: 0)
    return SimpleNamespace(calls=calls, answer=lambda *marks: answers.append({"stdout": MARKS % marks}))


def test_cold_starts_are_counted_and_the_largest_peak_kept(opened, quick, child):
    child.answer(10**6, 3 * 10**6, 500)
    child.answer(10**6, 4 * 10**6, 900)
    plan = type(quick)(**{**vars(quick), "starts": 2})
    result = cold_starts(opened, CPU, task_of(opened.manifest, plan), plan)
    assert {row.part: row.samples_ms for row in result.rows} == {
        "interpreter": (1.0, 1.0),
        "load": (2.0, 3.0),
        "total": (3.0, 4.0),
    }
    assert result.peak_rss_bytes == 900
    command, _ = child.calls[0]
    assert command[:2] == [sys.executable, "-P"]
    assert command[4:7] == ["onnxruntime", "cpu", "fp32"]


def test_a_backend_that_compiles_starts_once_more_without_its_cache(opened, quick, child, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/the/users")
    child.answer(10**6, 2 * 10**6, "null")
    child.answer(10**6, 90 * 10**6, "null")
    runner = Runner("tensorrt-rtx", "cuda", "fp16")
    result = cold_starts(opened, runner, task_of(opened.manifest, quick), quick)
    assert [(row.part, row.samples_ms) for row in result.rows][-2:] == [
        ("total", (2.0,)),
        ("total, empty kernel cache", (90.0,)),
    ]
    first, second = (environment["XDG_CACHE_HOME"] for _, environment in child.calls)
    assert first == "/the/users" != second
    assert result.peak_rss_bytes is None


def test_a_process_that_makes_no_image_is_an_error(opened, quick):
    with pytest.raises(
        BackendError, match="onnxruntime:cpu:fp8: a fresh process makes no image: ValueError: unknown pre"
    ):
        cold_starts(opened, Runner("onnxruntime", "cpu", "fp8"), task_of(opened.manifest, quick), quick)


@pytest.mark.usefixtures("one_thread")
def test_load_rows(opened, quick):
    load, first = load_rows(opened, CPU, task_of(opened.manifest, quick), quick)
    assert (load.subject, load.sizes, load.warmup) == ("load", {}, None)
    assert (first.subject, first.sizes["steps"]) == ("first image", 1)
    assert min(load.samples_ms + first.samples_ms) > 0

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from saishiki.runtime.bench import starts
from saishiki.runtime.bench.images import task_of
from saishiki.runtime.bench.runners import Runner
from saishiki.runtime.bench.starts import cold_starts, kernel_cache_rows, load_rows, stages_ms
from saishiki.runtime.errors import BackendError

CPU = Runner("onnxruntime", "cpu", "fp32")
FIRST = '{"marks_ns": {"interpreter": 1000000, "first image": %d}, "peak_rss_bytes": null}'
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
    return SimpleNamespace(
        calls=calls, answers=answers, answer=lambda *marks: answers.append({"stdout": MARKS % marks})
    )


def test_cold_starts_are_counted_and_the_largest_peak_kept(opened, quick, child):
    child.answer(10**6, 3 * 10**6, 500)
    child.answer(10**6, 4 * 10**6, 900)
    plan = type(quick)(**{**vars(quick), "least_starts": 2, "most_starts": 2})
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
    assert command[-1] == "cold"


@pytest.mark.parametrize(
    ("least", "most", "seconds", "started"),
    [(3, 9, 0.0, 3), (3, 9, 0.45, 5), (3, 4, 99.0, 4), (1, 1, 0.0, 1)],
    ids=["least", "as many as fit", "most", "one"],
)
def test_processes_are_started_while_there_is_time(quick, clock, least, most, seconds, started):
    plan = replace(quick, least_starts=least, most_starts=most, starts_s=seconds)

    def start():
        clock.pass_ms(100)
        return {}, None

    assert len(starts._repeated(start, plan, clock)) == started


def test_a_backend_that_compiles_starts_once_more_without_its_cache(opened, quick, child, monkeypatch):
    monkeypatch.setenv("SAISHIKI_CACHE", "/the/users")
    for done_ms in (2, 90):
        child.answers.append({"stdout": FIRST % (done_ms * 10**6)})
    runner = Runner("tensorrt-rtx", "cuda", "fp16")
    result = cold_starts(opened, runner, task_of(opened.manifest, quick), quick)
    assert [(row.part, row.samples_ms) for row in result.rows][-3:] == [
        ("total", (2.0,)),
        ("first image, empty kernel cache", (89.0,)),
        ("total, empty kernel cache", (90.0,)),
    ]
    first, second = (environment["SAISHIKI_CACHE"] for _, environment in child.calls)
    assert first == "/the/users" != second
    assert result.peak_rss_bytes is None


def test_processes_with_one_kernel_cache_between_them(opened, quick, child):
    for done_ms in (90, 12, 11):
        child.answers.append({"stdout": FIRST % (done_ms * 10**6)})
    rows = kernel_cache_rows(opened, CPU, task_of(opened.manifest, quick), cached=2)
    assert {row.part: row.samples_ms for row in rows} == {
        "first image, empty kernel cache": (89.0,),
        "total, empty kernel cache": (90.0,),
        "first image, kernel cache of the first": (11.0, 10.0),
        "total, kernel cache of the first": (12.0, 11.0),
    }
    (folder,) = {environment["SAISHIKI_CACHE"] for _, environment in child.calls}
    assert not Path(folder).exists()


def test_a_process_that_makes_no_image_is_an_error(opened, quick):
    with pytest.raises(
        BackendError, match="onnxruntime:cpu:fp8: a fresh process makes no image: ValueError: unknown pre"
    ):
        cold_starts(opened, Runner("onnxruntime", "cpu", "fp8"), task_of(opened.manifest, quick), quick)


def test_every_load_is_of_a_fresh_process_whose_libraries_are_warm(opened, quick, child):
    stages = '{"marks_ns": {"interpreter": 1000000, "earlier load": 9000000, "load": %d, "first image": %d}, %s}'
    for load, first in ((11, 14), (12, 19)):
        child.answers.append({"stdout": stages % (load * 10**6, first * 10**6, '"peak_rss_bytes": 1')})
    plan = replace(quick, least_starts=2, most_starts=2)
    load, first = load_rows(opened, CPU, task_of(opened.manifest, plan), plan)
    assert (load.samples_ms, first.samples_ms) == ((2.0, 3.0), (3.0, 7.0))
    assert [command[-1] for command, _ in child.calls] == ["warm", "warm"]


def test_load_rows(opened, quick):
    load, first = load_rows(opened, CPU, task_of(opened.manifest, quick), quick)
    assert (load.subject, load.sizes, load.warmup) == ("load", {}, None)
    assert (first.subject, first.sizes["steps"]) == ("first image", 1)
    assert min(load.samples_ms + first.samples_ms) > 0

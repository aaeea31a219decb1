from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from battery import first_runs as module
from battery.first_runs import first_runs
from battery.part import Options, SkippedError

from saishiki.runtime.bench import starts
from saishiki.runtime.bench.runners import Runner

DRY_RUN = Options(dry_run=True)
FIRST = '{"marks_ns": {"interpreter": 1000000, "first image": %d}, "peak_rss_bytes": null}'


def test_a_dry_run_starts_processes_and_times_none(tiny_bundle: Path) -> None:
    rows = list(first_runs(replace(DRY_RUN, bundle=tiny_bundle)))
    assert [(row["what"], row["n"]) for row in rows] == [
        ("first image, empty kernel cache", 1),
        ("total, empty kernel cache", 1),
        ("first image, kernel cache of the first", 1),
        ("total, kernel cache of the first", 1),
    ]
    assert {row["backend"] for row in rows} == {module.STAND_IN}
    assert not any(name.startswith(("p50", "samples")) for row in rows for name in row)


def test_the_first_of_four_compiles(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[str] = []
    answers = [9000, 800, 900, 850]

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        assert command[4:7] == ["tensorrt-rtx", "cuda", "fp16"]
        caches.append(env["SAISHIKI_CACHE"])
        return SimpleNamespace(returncode=0, stdout=FIRST % (answers.pop(0) * 10**6), stderr="")

    monkeypatch.setattr(starts.subprocess, "run", run)
    monkeypatch.setattr(starts.time, "monotonic_ns", lambda: 0)
    monkeypatch.setattr(module, "why_unavailable", lambda name: None)
    chosen = SimpleNamespace(runners=(Runner("tensorrt-rtx", "cuda", "fp16"),))
    monkeypatch.setattr(module, "runners_named", lambda bundle, names: chosen)
    rows = {row["what"]: row for row in first_runs(Options(dry_run=False, bundle=tiny_bundle))}
    assert rows["total, empty kernel cache"]["samples_ms"] == [9000.0]
    assert rows["total, kernel cache of the first"]["samples_ms"] == [800.0, 900.0, 850.0]
    assert rows["first image, kernel cache of the first"]["p50_ms"] == 849.0
    assert len(caches) == 4
    assert len(set(caches)) == 1


def test_it_is_skipped_without_a_bundle_or_a_backend(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SkippedError, match="needs --bundle DIR"):
        next(first_runs(DRY_RUN))
    monkeypatch.setattr(module, "why_unavailable", lambda name: f"no {name} here")
    with pytest.raises(SkippedError, match="no tensorrt-rtx here"):
        next(first_runs(Options(dry_run=False, bundle=tiny_bundle)))

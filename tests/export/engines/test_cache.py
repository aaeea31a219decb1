import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import sleep

import pytest

from saishiki.export.engines import BuildReport, EngineBuildError, cached_engine, copy_engine, prune
from saishiki.export.engines import cache as cache_module
from saishiki.runtime.errors import BackendError
from saishiki.runtime.manifest import EngineKey

KEY = EngineKey("w", "g", "batch 1", "fp16", "tensorrt_rtx", "1.7.1.116", "sm89")


def report_of(content: bytes) -> BuildReport:
    digest = hashlib.sha256(content).hexdigest()
    return BuildReport("tensorrt_rtx", "1.7.1.116", "sm89", 1.5, 1, 20, 4, 4, 4096, len(content), digest, None)


def building(content: bytes = b"an engine") -> Callable[[Path], BuildReport]:
    def build(path: Path) -> BuildReport:
        path.write_bytes(content)
        return report_of(content)

    return build


def refusing(path: Path) -> BuildReport:
    raise EngineBuildError("must not be built again")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAISHIKI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def test_cached_engine_builds_once(cache: Path) -> None:
    built = cached_engine(KEY, building())
    again = cached_engine(KEY, refusing)
    assert (built.reused, again.reused) == (False, True)
    assert again.path == built.path
    assert again.report == built.report == report_of(b"an engine")
    assert built.path.is_relative_to(cache)
    assert built.path.read_bytes() == b"an engine"


def test_cached_engine_builds_every_key(cache: Path) -> None:
    paths = {cached_engine(replace(KEY, target=f"sm{sm}"), building()).path for sm in (86, 89)}
    assert len(paths) == 2


def damage_by_cutting(engine: Path) -> None:
    engine.write_bytes(b"an eng")


def damage_by_a_bit(engine: Path) -> None:
    engine.write_bytes(b"an enginf")


def damage_by_losing_the_report(engine: Path) -> None:
    engine.with_name("report.json").unlink()


def damage_by_half_a_report(engine: Path) -> None:
    report = engine.with_name("report.json")
    report.write_bytes(report.read_bytes()[:40])


def damage_by_losing_the_engine(engine: Path) -> None:
    engine.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_cutting,
        damage_by_a_bit,
        damage_by_losing_the_report,
        damage_by_half_a_report,
        damage_by_losing_the_engine,
    ],
    ids=["cut", "bit", "no-report", "half-report", "no-engine"],
)
def test_cached_engine_builds_again_what_is_damaged(damage: Callable[[Path], None]) -> None:
    damage(cached_engine(KEY, building()).path)
    cured = cached_engine(KEY, building())
    assert (cured.reused, cured.path.read_bytes()) == (False, b"an engine")
    assert cached_engine(KEY, refusing).reused


def test_cached_engine_builds_again_for_another_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    cached_engine(KEY, building())
    monkeypatch.setattr(cache_module, "RECIPE", cache_module.RECIPE + 1)
    assert not cached_engine(KEY, building()).reused


def test_cached_engine_removes_what_a_killed_export_left() -> None:
    folder = cached_engine(KEY, building()).path.parent
    (folder / "report.json").unlink()
    (folder / ".engine-killed").mkdir()
    cached_engine(KEY, building())
    assert sorted(path.name for path in folder.iterdir()) == ["engine", "report.json"]


def test_cached_engine_keeps_nothing_of_a_failed_build() -> None:
    with pytest.raises(EngineBuildError, match="must not be built again"):
        cached_engine(KEY, refusing)
    assert not cached_engine(KEY, building()).reused


def test_cached_engine_is_built_once_by_two_threads() -> None:
    builds = []

    def slow(path: Path) -> BuildReport:
        builds.append(path)
        sleep(0.1)
        return building()(path)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: cached_engine(KEY, slow), range(2)))
    assert len(builds) == 1
    assert sorted(engine.reused for engine in found) == [False, True]


EXPORT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_cache import KEY, building
from saishiki.export.engines import cached_engine

def slow(path):
    time.sleep(0.5)
    return building()(path)

print(cached_engine(KEY, slow).reused)
"""


def test_cached_engine_is_built_once_by_two_processes() -> None:
    command = [sys.executable, "-c", EXPORT, str(Path(__file__).parent)]
    exports = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(export.communicate()[0].strip() for export in exports)
    assert said == ["False", "True"]


def test_cached_engine_names_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SAISHIKI_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackendError, match=r"file/engines/.*cannot be written \(Not a directory\); set SAISHIKI_CACHE"):
        cached_engine(KEY, building())


def test_cached_engine_without_the_variable_is_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAISHIKI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cached_engine(KEY, building()).path.is_relative_to(tmp_path / "saishiki" / "engines")


def test_copy_engine_leaves_the_cache_alone(tmp_path: Path) -> None:
    copy = tmp_path / "bundle" / "engines" / "sm89" / "unet"
    copy_engine(cached_engine(KEY, building()), copy)
    copy.write_bytes(b"edited")
    assert cached_engine(KEY, refusing).path.read_bytes() == b"an engine"


def keys_in_the_cache(count: int) -> list[EngineKey]:
    """Keys of 100-byte engines, the first of which was not used for longest."""
    keys = [replace(KEY, weights=str(number)) for number in range(count)]
    for age, key in enumerate(keys):
        report = cached_engine(key, building(b"e" * 100)).path.with_name("report.json")
        os.utime(report, (age, age))
    return keys


def is_cached(key: EngineKey) -> bool:
    return (cache_module._folder_of(key) / "engine").exists()


def test_prune_removes_what_was_not_used_for_longest() -> None:
    keys = keys_in_the_cache(3)
    cached_engine(keys[0], refusing)
    size = sum(file.stat().st_size for file in cache_module._folder_of(keys[1]).iterdir())
    assert prune(2 * size) == size
    assert [is_cached(key) for key in keys] == [True, False, True]


def test_prune_of_a_cache_that_fits_removes_nothing() -> None:
    (key,) = keys_in_the_cache(1)
    assert prune(10_000) == 0
    assert is_cached(key)


def test_prune_leaves_an_engine_that_is_in_use() -> None:
    (key,) = keys_in_the_cache(1)
    with cache_module._locked(cache_module._folder_of(key)):
        assert prune(0) == 0
    assert prune(0) > 0
    assert not is_cached(key)

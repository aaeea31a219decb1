"""Engines that were built before, by hash of key: ``<cache>/engines/<hash[:2]>/<hash>/{engine,report.json}``."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from saishiki.export.engines.key import hash_of_key
from saishiki.export.engines.request import ENGINE_NAME, BuildReport
from saishiki.runtime.bundle import sha256_of_file
from saishiki.runtime.cache import cache_folder
from saishiki.runtime.errors import BackendError
from saishiki.runtime.manifest import EngineKey

REPORT_NAME = "report.json"

# Of the settings that worker.py gives the builder; another number makes every cached engine be built again.
RECIPE = 2


@dataclass(frozen=True)
class CachedEngine:
    """An engine in the cache. Copy it (``copy_engine``); never write to ``path``."""

    path: Path
    report: BuildReport
    reused: bool


@dataclass(frozen=True)
class _Entry:
    """The report as it is stored."""

    recipe: int
    key: EngineKey
    report: BuildReport


def engines_folder() -> Path:
    """The folder of all cached engines."""
    return cache_folder("engines")


def cached_engine(key: EngineKey, build: Callable[[Path], BuildReport]) -> CachedEngine:
    """The engine of ``key``: from the cache, else built by ``build``, which gets the path to write to.

    Where two exports want the same engine, the second waits for the first. An engine that is damaged is built again.
    Raises what ``build`` raises, and ``BackendError`` where the cache cannot be written.
    """
    folder = _folder_of(key)
    with _locked(folder):
        if report := _stored_report(folder, key):
            os.utime(folder / REPORT_NAME)
            return CachedEngine(folder / ENGINE_NAME, report, reused=True)
        return CachedEngine(folder / ENGINE_NAME, _built_into(folder, key, build), reused=False)


def copy_engine(cached: CachedEngine, destination: Path) -> None:
    """Copies an engine out of the cache. No link: what happens to a bundle must not reach the cache."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(cached.path, destination)


def prune(max_bytes: int) -> int:
    """Removes the engines that were not used for longest until the rest fits ``max_bytes``; returns the bytes removed.

    Engines that are being built stay.
    """
    reports = sorted(engines_folder().glob(f"*/*/{REPORT_NAME}"), key=lambda report: report.stat().st_mtime_ns)
    sizes = {report.parent: _bytes_of(report.parent) for report in reports}
    excess = sum(sizes.values()) - max_bytes
    removed = 0
    for folder, size in sizes.items():
        if removed < excess and _removed(folder):
            removed += size
    return removed


def _folder_of(key: EngineKey) -> Path:
    name = hash_of_key(key)
    return engines_folder() / name[:2] / name


def _stored_report(folder: Path, key: EngineKey) -> BuildReport | None:
    """The report of an entry, or None where the entry is missing, damaged, or of another recipe."""
    engine = folder / ENGINE_NAME
    try:
        entry = msgspec.json.decode((folder / REPORT_NAME).read_bytes(), type=_Entry)
        if (entry.recipe, entry.key) != (RECIPE, key) or engine.stat().st_size != entry.report.bytes:
            return None
        return entry.report if sha256_of_file(engine) == entry.report.sha256 else None
    except (OSError, msgspec.DecodeError):
        return None


def _built_into(folder: Path, key: EngineKey, build: Callable[[Path], BuildReport]) -> BuildReport:
    # What is there is damaged, or what a killed export left behind.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    report = build(folder / ENGINE_NAME)
    (folder / REPORT_NAME).write_bytes(msgspec.json.encode(_Entry(RECIPE, key, report)))
    return report


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise BackendError(
            f"{folder.parent}: the cache cannot be written ({error.strerror}); set SAISHIKI_CACHE to another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _removed(folder: Path) -> bool:
    """Whether the entry could be removed: not while an export holds its lock."""
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            shutil.rmtree(folder)
    except Timeout:
        return False
    return True


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())

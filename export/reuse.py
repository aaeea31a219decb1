"""Exports that need not run again: bundles made from the same checkpoint by the same request and the same code.

A bundle's marker holds the digest of everything that it follows from, and the cache knows by that digest where the last
such bundle lies. Its files are checked by their hashes before they are reused; the manifest is written anew.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from saishiki.export.bundle_writer import MARKER, BundleDraft
from saishiki.export.engines import installed_builder
from saishiki.export.request import ExportRequest
from saishiki.runtime.bundle import Bundle, sha256_of_file
from saishiki.runtime.cache import cache_folder
from saishiki.runtime.errors import BundleError

CODE = ("export", "kernels", "models", "runtime")
PACKAGES = ("diffusers", "numpy", "onnx-ir", "onnxruntime", "onnxscript", "open_clip_torch", "saishiki", "torch")
WITHOUT_EFFECT = frozenset({"output", "keep_failed", "overwrite", "rebuild", "command"})
"""What a request says that leaves no trace in a bundle's files."""


def digest_of_export(request: ExportRequest) -> str:
    """The sha256, in hex, of what a bundle follows from: the content of files, options, versions and our own code."""
    asked = {f.name: getattr(request, f.name) for f in fields(request) if f.name not in WITHOUT_EFFECT}
    builders = [installed_builder(target) for target in request.targets]
    cause = asked | {"code": _code_digest(), "builders": builders, "versions": {p: _version(p) for p in PACKAGES}}
    return hashlib.sha256(msgspec.json.encode(cause, enc_hook=_file_digest, order="deterministic")).hexdigest()


def _file_digest(path: Any) -> list[str]:
    """A file by its name, which the manifest states, and its content."""
    if not isinstance(path, Path):
        raise NotImplementedError(f"{type(path).__name__} in an export request")
    return [path.name, sha256_of_file(path) if path.is_file() else ""]


def _code_digest() -> str:
    folders = [Path(folder) for name in CODE for folder in import_module(f"saishiki.{name}").__path__]
    files = [(str(file.relative_to(folder)), file) for folder in folders for file in sorted(folder.rglob("*.py"))]
    return hashlib.sha256("".join(f"{name} {sha256_of_file(file)}\n" for name, file in files).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def finished_bundles(digest: str, output: Path) -> Iterator[Bundle]:
    """Bundles of that digest: at ``output``, then where the last one was written; none whose certificate failed."""
    for path in dict.fromkeys((output.absolute(), *_remembered(digest))):
        with suppress(OSError, BundleError):
            if (path / MARKER).read_text() == digest:
                yield Bundle.open(path)


def _remembered(digest: str) -> tuple[Path, ...]:
    with suppress(OSError):
        return (Path(_record(digest).read_text()),)
    return ()


def remember(digest: str, bundle: Path) -> None:
    """Notes where the bundle of a digest lies; where the cache cannot be written, later exports start from nothing."""
    with suppress(OSError):
        _record(digest).parent.mkdir(parents=True, exist_ok=True)
        _record(digest).write_text(str(bundle.absolute()))


def _record(digest: str) -> Path:
    return cache_folder("bundles") / digest


def reuse_files(bundle: Bundle, draft: BundleDraft, output: Path) -> None:
    """Puts a finished bundle's files into a draft. Raises ``BundleError`` naming the first that is damaged."""
    entries = tuple(dict.fromkeys(bundle.manifest.files()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = list(pool.map(bundle.file, entries))
    # Links only to what the draft is about to replace: what happens to one bundle must not reach another.
    replaced = bundle.path == output.absolute()
    for entry, file in zip(entries, files, strict=True):
        destination = draft.folder(str(Path(entry.path).parent)) / file.name
        if not (replaced and _linked(file, destination)):
            shutil.copyfile(file, destination)


def _linked(file: Path, destination: Path) -> bool:
    """Whether the file could be linked: some file systems know no links."""
    try:
        os.link(file, destination)
    except OSError:
        return False
    return True

"""Writing a bundle so that a killed export leaves nothing that loads as one.

Everything is written to a hidden folder beside the output, which is then renamed. The manifest, without which no folder is
a bundle, is put into place last of all, by a rename of its own.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from saishiki.runtime.bundle import file_entry
from saishiki.runtime.manifest import MANIFEST_NAME, FileEntry, Manifest, json_from_manifest

MARKER = ".saishiki-bundle"
"""Marks a folder that an export made, so that only such a folder is ever replaced."""


@dataclass(frozen=True)
class BundleDraft:
    """A bundle that is being written."""

    path: Path

    def folder(self, name: str) -> Path:
        """A folder of the bundle, made where it is missing."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def entry(self, file: Path) -> FileEntry:
        """The manifest's entry for a file that has been written."""
        return file_entry(self.path, file.relative_to(self.path).as_posix())


def check_output(output: Path, *, overwrite: bool) -> None:
    """Raises ``FileExistsError`` where the output is there and may not be replaced, ``FileNotFoundError`` for its parent."""
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output.absolute().parent} does not exist; make it first")
    if not output.exists() or _is_unfinished(output) or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MARKER).is_file():
        raise FileExistsError(f"{output} exists and is not a bundle; choose another place with -o")
    if not overwrite:
        raise FileExistsError(f"{output} holds a bundle; replace it with --overwrite, or choose another place with -o")


def _is_unfinished(output: Path) -> bool:
    return (output / MARKER).is_file() and not (output / MANIFEST_NAME).exists()


@contextmanager
def draft_bundle(output: Path) -> Iterator[BundleDraft]:
    """A draft beside the output, removed afterwards unless it was committed."""
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.absolute().parent))
    folder.chmod(0o755)
    (folder / MARKER).touch()
    try:
        yield BundleDraft(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit_bundle(draft: BundleDraft, manifest: Manifest, output: Path) -> None:
    """Puts the draft in the output's place, then the manifest into it."""
    for file in draft.path.rglob("*"):
        if file.is_file():
            _sync(file)
    if output.exists():
        _discard(output)
    os.rename(draft.path, output)
    partial = output / f".{MANIFEST_NAME}.partial"
    partial.write_bytes(json_from_manifest(manifest))
    _sync(partial)
    os.rename(partial, output / MANIFEST_NAME)


def _discard(output: Path) -> None:
    """Removes an old bundle; its manifest goes first, so that at no moment half of it loads."""
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(output)


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())

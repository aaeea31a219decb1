"""Writing a bundle so that a killed export leaves nothing that loads as one.

Everything is written to a hidden folder beside the output, which is then renamed. The manifest, without which no folder
is a bundle, is put into place last of all, by a rename of its own.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from saishiki.runtime.bundle import file_entry
from saishiki.runtime.manifest import MANIFEST_NAME, FileEntry, Manifest, json_from_manifest

MARKER = ".saishiki-bundle"
"""Marks a folder that an export made, so that only such a folder is ever replaced.

While a draft is being written its process holds a lock on the marker: one without a lock was left by a killed export.
"""

PARTIAL = ".partial"


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
    """Raises ``FileExistsError`` where the output is there and may not be replaced, or ``FileNotFoundError``.

    An empty folder, and one that a killed export left, may always be replaced.
    """
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output.absolute().parent} does not exist; make it first")
    if output.is_symlink():
        raise FileExistsError(f"{output} is a link; choose the folder itself, or another place, with -o")
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
    """A draft beside the output, removed afterwards unless it was committed; drafts of killed exports are removed."""
    parent = output.absolute().parent
    with ExitStack() as stack:
        # Locked, so that no other export sees this draft before its marker is.
        with _locked(os.open(parent, os.O_RDONLY)):
            _remove_stale_drafts(output)
            folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=PARTIAL, dir=parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.chmod(0o755)
            stack.enter_context(_locked(os.open(folder / MARKER, os.O_RDONLY | os.O_CREAT, 0o644)))
        yield BundleDraft(folder)


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Closes the descriptor afterwards, which unlocks it too."""
    try:
        # A file system without locks serves all the same; drafts that killed exports leave there stay.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale_drafts(output: Path) -> None:
    """Removes the drafts of ``output`` whose export was killed: nobody holds the lock on their marker."""
    prefix = f".{output.name}."
    for folder in output.absolute().parent.iterdir():
        if folder.name.startswith(prefix) and folder.name.endswith(PARTIAL) and _is_stale(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_stale(folder: Path) -> bool:
    try:
        with (folder / MARKER).open() as marker:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except FileNotFoundError:
        return folder.is_dir() and not any(folder.iterdir())
    except OSError:
        return False


def commit_bundle(draft: BundleDraft, manifest: Manifest, output: Path, *, overwrite: bool) -> None:
    """Puts the draft in the output's place, then the manifest into it.

    Raises what :func:`check_output` raises: something may have come there since the export began.
    """
    # Some writers make private files; the marker has the mode that the user's umask asks for.
    mode = stat.S_IMODE((draft.path / MARKER).stat().st_mode)
    for file in draft.path.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            _sync(file)
    check_output(output, overwrite=overwrite)
    if output.exists():
        _discard(output)
    os.rename(draft.path, output)
    partial = output / f".{MANIFEST_NAME}{PARTIAL}"
    partial.write_bytes(json_from_manifest(manifest))
    _sync(partial)
    os.rename(partial, output / MANIFEST_NAME)


def _discard(output: Path) -> None:
    """Removes an old bundle; its manifest goes first, so that at no moment half of it loads."""
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    # The marker goes last: without it the rest would be taken for somebody else's folder.
    for item in output.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name != MARKER:
            item.unlink()
    shutil.rmtree(output)


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())

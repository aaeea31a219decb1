"""A bundle on disk: the manifest, and files that are checked against it before anything reads them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file

from saishiki.runtime.errors import BundleError
from saishiki.runtime.manifest import MANIFEST_NAME, FileEntry, Manifest, ModuleEntry, manifest_from_json
from saishiki.runtime.schedule import BUFFERS, DiffusionSchedule
from saishiki.runtime.signature import Array
from saishiki.runtime.vectors import StoredVectors

MAX_MANIFEST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Bundle:
    """A folder that ``export-engines`` wrote."""

    path: Path
    manifest: Manifest
    check_hashes: bool = True
    _checked: set[tuple[str, int, int, int]] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path, *, allow_failed: bool = False, check_hashes: bool = True) -> "Bundle":
        """Opens a bundle and checks that its files are there.

        Args:
            allow_failed: open a bundle whose parity certificate failed, for inspection.
            check_hashes: compare the sha256 of every file before it is read.

        Raises ``BundleError`` where the folder is no bundle, a file is missing, of another size or outside the folder,
        the format is newer, or the certificate failed.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        bundle = cls(path, manifest, check_hashes)
        for entry in manifest.files():
            bundle.check_size(entry)
        if manifest.certificate.verdict == "failed" and not allow_failed:
            raise BundleError(
                f"{path}: its parity certificate failed, so its engines do not compute what the checkpoint computes; "
                f"see: saishiki inspect {path}"
            )
        return bundle

    def check_size(self, entry: FileEntry) -> None:
        """Raises ``BundleError`` where the file is missing or of another size."""
        file = self.path / entry.path
        if not file.is_file():
            raise BundleError(f"{self.path}: {entry.path} is missing; copy the whole folder, or export again")
        if file.stat().st_size != entry.bytes:
            raise BundleError(
                f"{self.path}: {entry.path} has {file.stat().st_size} bytes, the manifest says {entry.bytes}; "
                "copy the file again, or export again"
            )

    def file(self, entry: FileEntry) -> Path:
        """The path of a file whose content is as the manifest says; raises ``BundleError`` where it is not."""
        file = self.path / entry.path
        if self.check_hashes and not self._is_whole(file, entry):
            raise BundleError(
                f"{self.path}: {entry.path} is damaged (its sha256 is not the manifest's); "
                "copy the file again, or export again"
            )
        return file

    def _is_whole(self, file: Path, entry: FileEntry) -> bool:
        # Modules share files of weights: one that nobody has written to since is not read again.
        found = file.stat()
        state = entry.path, found.st_ino, found.st_mtime_ns, found.st_size
        if state in self._checked:
            return True
        if sha256_of_file(file) != entry.sha256:
            return False
        self._checked.add(state)
        return True

    def module(self, name: str) -> ModuleEntry:
        """The entry of a module; raises ``BundleError`` where the bundle has none of that name."""
        try:
            return self.manifest.modules[name]
        except KeyError:
            raise BundleError(f"{self.path}: no module {name!r}; it has {sorted(self.manifest.modules)}") from None

    def schedule(self) -> DiffusionSchedule:
        """The diffusion schedule, as stored in the checkpoint."""
        return DiffusionSchedule(self.schedule_tables(*BUFFERS))

    def schedule_tables(self, *names: str) -> dict[str, Array]:
        """Some of the schedule's tables by published name; raises ``BundleError`` for those that are not there."""
        tensors = self._tensors(self.manifest.schedule)
        if missing := sorted(set(names) - tensors.keys()):
            raise BundleError(f"{self.path}: {self.manifest.schedule.path} lacks {', '.join(missing)}; export again")
        return {name: tensors[name] for name in names}

    def parity_vectors(self) -> Mapping[str, Array]:
        """The stored inputs and outputs of the PyTorch reference, by name; each is read when it is asked for."""
        return StoredVectors(self.file(self.manifest.parity))

    def _tensors(self, entry: FileEntry) -> dict[str, Array]:
        try:
            return dict(load_file(self.file(entry)))
        except SafetensorError as error:
            raise BundleError(f"{self.path}: {entry.path} is not a safetensors file ({error}); export again") from error


def _read_manifest(path: Path) -> Manifest:
    manifest = path / MANIFEST_NAME
    if path.is_file():
        raise BundleError(f"{path}: is a file; expected the folder that export-engines wrote")
    if not path.is_dir():
        raise BundleError(f"{path}: no such bundle; make one with: export-engines CHECKPOINT -o {path}")
    if not manifest.is_file():
        raise BundleError(
            f"{path}: holds no {MANIFEST_NAME}, so it is not a bundle, or its export was interrupted; export again"
        )
    if manifest.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{manifest}: larger than {MAX_MANIFEST_BYTES} bytes, so it is not a manifest; export again")
    return manifest_from_json(manifest.read_bytes(), source=str(manifest))


def sha256_of_file(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(bundle: Path, path: str) -> FileEntry:
    """The manifest's entry for a file of the bundle that has just been written."""
    file = bundle / path
    return FileEntry(path=path, sha256=sha256_of_file(file), bytes=file.stat().st_size)

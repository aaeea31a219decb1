"""Named tensors in a safetensors file that may be larger than the memory: each is read when it is asked for."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from saishiki.runtime.errors import BundleError
from saishiki.runtime.signature import Array

SAME = "same"
"""The file's metadata under this name: JSON, from the name of a tensor to the one it is equal to, which is stored."""


class StoredVectors(Mapping[str, Array]):
    """The tensors of a file by name; those that are equal may be stored once.

    Raises ``BundleError`` where the file is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(path, framework="np") as file:
                names, metadata = tuple(file.keys()), file.metadata() or {}
            same = json.loads(metadata.get(SAME, "{}"))
        except (SafetensorError, ValueError) as error:
            raise self._unreadable(error) from error
        self._stored: dict[str, str] = {name: name for name in names} | same

    def __getitem__(self, name: str) -> Array:
        stored = self._stored[name]
        try:
            with safe_open(self._path, framework="np") as file:
                array: Array = file.get_tensor(stored)
        except SafetensorError as error:
            raise self._unreadable(error) from error
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def _unreadable(self, error: Exception) -> BundleError:
        return BundleError(f"{self._path.parent}: {self._path.name} is not a safetensors file ({error}); export again")

"""Tensors that stay in their file until they are asked for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

REOPEN_BYTES = 256 * 2**20


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read when it is needed.

    Args:
        layout: the tensor on the meta device: its dtype and shape.
        read: gives a copy of its own.
    """

    layout: Tensor
    read: Callable[[], Tensor]


class StoredTensors(Mapping[str, Tensor]):
    """Stored tensors by name; each is read when it is asked for, and not kept.

    Selecting, renaming and joining is done on ``entries``, which reads nothing.
    """

    def __init__(self, entries: Mapping[str, StoredTensor]) -> None:
        self.entries = entries

    @property
    def layout(self) -> Mapping[str, Tensor]:
        """Every tensor on the meta device."""
        return {name: entry.layout for name, entry in self.entries.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def stored_tensors(open_file: Callable[[], Mapping[str, Tensor]]) -> StoredTensors:
    """The tensors of a file.

    Args:
        open_file: opens the file anew and gives its tensors, mapped into memory.
    """
    file = _MappedFile(open_file)
    return StoredTensors({name: file.entry(name) for name in file.tensors})


class _MappedFile:
    """A file that is mapped into memory, and mapped anew now and then.

    Pages that were read count as memory of this process until the mapping they belong to is closed.
    """

    def __init__(self, open_file: Callable[[], Mapping[str, Tensor]]) -> None:
        self._open_file, self._read_bytes = open_file, 0
        self.tensors = open_file()

    def entry(self, name: str) -> StoredTensor:
        return StoredTensor(self.tensors[name].to("meta"), lambda: self._read(name))

    def _read(self, name: str) -> Tensor:
        if self._read_bytes > REOPEN_BYTES:
            self.tensors, self._read_bytes = self._open_file(), 0
        tensor = self.tensors[name].clone()
        self._read_bytes += tensor.nbytes
        return tensor

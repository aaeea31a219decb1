"""The tensors of a certificate, written as they are computed: they are more than the memory should hold.

Variants of a module are probed with the same keys, values and hints, so equal tensors are stored once.
"""

import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from saishiki.runtime.signature import Array
from saishiki.runtime.vectors import SAME

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8"}
"""The names of dtypes in safetensors files, by those of numpy."""


@dataclass(frozen=True)
class _Place:
    """A tensor in the data that was written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class VectorsFile(MutableMapping[str, Array]):
    """A mapping whose arrays are on disk. A name is given once; nothing is ever taken out."""

    def __init__(self, data: IO[bytes]) -> None:
        self._data = data
        self._places: dict[str, _Place] = {}
        self._by_content: dict[bytes, _Place] = {}

    def __setitem__(self, name: str, array: Array) -> None:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(f"{array.dtype.name} {array.shape}".encode() + b"\0")
        digest.update(content)
        place = self._by_content.get(digest.digest())
        if name in self._places and self._places[name] is not place:
            raise ValueError(f"the vector {name} is written already, with another content")
        if place is None:
            begin = self._data.seek(0, 2)
            place = _Place(name, array.dtype.name, array.shape, begin, begin + self._data.write(content))
            self._by_content[digest.digest()] = place
        self._places[name] = place

    def __getitem__(self, name: str) -> Array:
        place = self._places[name]
        self._data.seek(place.begin)
        content = self._data.read(place.end - place.begin)
        return np.frombuffer(content, place.dtype).reshape(place.shape)

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"the vector {name} is written; nothing is ever taken out")

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def save(self, path: Path) -> None:
        """Writes all of it as a safetensors file, without holding it."""
        header = self._header()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            self._data.seek(0)
            shutil.copyfileobj(self._data, file)

    def _header(self) -> bytes:
        same = {name: place.name for name, place in self._places.items() if name != place.name}
        entries = {
            place.name: {"dtype": DTYPES[place.dtype], "shape": place.shape, "data_offsets": (place.begin, place.end)}
            for place in self._by_content.values()
        }
        text = json.dumps({"__metadata__": {SAME: json.dumps(same)}, **entries}).encode()
        return text + b" " * (-len(text) % 8)


@contextmanager
def vectors_file(path: Path) -> Iterator[VectorsFile]:
    """A mapping for the tensors of ``path``, which is written when it is complete."""
    with tempfile.TemporaryFile(dir=path.parent) as data:
        vectors = VectorsFile(data)
        yield vectors
        vectors.save(path)

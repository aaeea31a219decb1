"""The weights of an ONNX graph, mapped by us and not by TensorRT's parser, so that their pages can be given back."""

import mmap
import sys
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx

Place = tuple[int, int]
"""Where a weight is in this process: its address, and its bytes."""


class MappedWeights:
    """Files of weights, mapped read-only until the context ends.

    Linux counts what was read of a mapped file as memory of the process, though it needs none: the same pages are in
    the cache of files. TensorRT's builder reads every weight once and keeps the mapping until the engine is done, so
    that the whole file would count beside what it makes of it. These mappings are ours: nobody else ends them, nothing
    writes to them, and a page that was given back is there again at the next read.
    """

    def __init__(self) -> None:
        self._files: dict[Path, mmap.mmap] = {}

    def __enter__(self) -> "MappedWeights":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def places(self, model: bytes, folder: Path) -> dict[str, Place]:
        """Where the weights are that the graph, which is in this folder, names places of files for.

        Leaves out weights in the graph itself, and places that do not exist; the parser says what is wrong with those.
        """
        graph = onnx.load_model_from_string(model).graph
        found = {tensor.name: self._place(tensor, folder) for tensor in graph.initializer}
        return {name: place for name, place in found.items() if place}

    def return_pages(self) -> None:
        """Has Linux take back what is in memory of the files; each page comes back from its cache when it is read."""
        if sys.platform == "linux":
            for file in self._files.values():
                file.madvise(mmap.MADV_DONTNEED)

    def _place(self, tensor: onnx.TensorProto, folder: Path) -> Place | None:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return None
        external = {entry.key: entry.value for entry in tensor.external_data}
        path = folder / external.get("location", "")
        offset, size = int(external.get("offset", 0)), int(external.get("length", 0))
        if size == 0 or not path.is_file() or path.stat().st_size < offset + size:
            return None
        return self._address(path) + offset, size

    def _address(self, path: Path) -> int:
        if path not in self._files:
            with path.open("rb") as file:
                self._files[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return int(np.frombuffer(self._files[path], np.uint8).ctypes.data)

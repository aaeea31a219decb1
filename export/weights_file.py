"""The file that holds the weights of one graph, or of several that share them."""

import hashlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from saishiki.export.lazy_weights import LazyWeight

INLINE_BYTES = 256
"""Weights smaller than this stay in the graph itself."""


@dataclass
class WeightsFile:
    """A file of weights that is being written; each distinct one is written once, whichever graphs have it.

    No more than one weight is in memory at a time.
    """

    path: Path
    _file: BinaryIO
    _places: dict[Hashable, tuple[int, int]] = field(default_factory=dict)
    _identified: list[LazyWeight] = field(default_factory=list)

    def move_weights(self, model: ir.Model) -> None:
        """Writes the weights of a model that is to be saved in the same folder, and refers it to them."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes >= INLINE_BYTES:
                offset, length = self._place_of(tensor)
                value.const_value = ir.ExternalTensor(
                    self.path.name,
                    offset,
                    length,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=value.name or "",
                    base_dir=self.path.parent,
                )

    def _place_of(self, tensor: ir.TensorProtocol) -> tuple[int, int]:
        if not isinstance(tensor, LazyWeight):
            return self._written(tensor)
        if tensor.identity not in self._places:
            self._places[tensor.identity] = self._written(tensor)
            # Kept, so that no other object ever has the same id.
            self._identified.append(tensor)
        return self._places[tensor.identity]

    def _written(self, tensor: ir.TensorProtocol) -> tuple[int, int]:
        """Where the weight's bytes are, written now unless the same ones are there already."""
        content = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(content).digest()
        if digest not in self._places:
            self._places[digest] = self._file.tell(), self._file.write(content)
        return self._places[digest]


@contextmanager
def weights_file(path: Path) -> Iterator[WeightsFile]:
    """A new file of weights; complete afterwards."""
    with path.open("wb") as file:
        yield WeightsFile(path, file)

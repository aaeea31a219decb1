"""What was computed from a reference, kept under a key that says all that it depends on.

A key is a tuple: the hash of a picture's pixels, and around it the name of every step with what acts in it, such as
``("image_encoder", ("clip_pixels", "9f3c..."))``. Two calls with the same picture build the same keys and so meet in
the cache, whatever file the picture came from.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from saishiki.runtime.signature import Array

Key = tuple[object, ...]
Tensors = Mapping[str, Array]
MAX_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Node:
    """Tensors that are computed when they are asked for."""

    key: Key
    compute: Callable[[], Tensors]


@dataclass
class ReferenceCache:
    """The tensors that were used last, up to a number of bytes; what is larger by itself is not kept. Thread-safe."""

    max_bytes: int = MAX_BYTES
    _kept: OrderedDict[Key, Tensors] = field(default_factory=OrderedDict, init=False, repr=False)
    _bytes: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __call__(self, node: Node) -> Tensors:
        """The node's tensors, read-only: kept ones, or computed now.

        Nothing is locked while they are computed, so two threads may compute the same thing.
        """
        with self._lock:
            if node.key in self._kept:
                self._kept.move_to_end(node.key)
                return self._kept[node.key]
        tensors = {name: _frozen(tensor) for name, tensor in node.compute().items()}
        self._keep(node.key, tensors)
        return tensors

    @property
    def bytes(self) -> int:
        """What is kept, in bytes."""
        return self._bytes

    def limit(self, max_bytes: int) -> None:
        """Keeps no more than so many bytes from now on; 0 keeps nothing."""
        with self._lock:
            self.max_bytes = max_bytes
            self._forget_oldest()

    def clear(self) -> None:
        """Forgets everything that is kept now."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _keep(self, key: Key, tensors: Tensors) -> None:
        size = _bytes_of(tensors)
        with self._lock:
            if size > self.max_bytes or key in self._kept:
                return
            self._kept[key] = tensors
            self._bytes += size
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        while self._bytes > self.max_bytes:
            self._bytes -= _bytes_of(self._kept.popitem(last=False)[1])


def digest_of(pixels: Array) -> str:
    """The hash of an array's content, shape and dtype."""
    digest = hashlib.sha256(f"{pixels.dtype} {pixels.shape} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _bytes_of(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _frozen(tensor: Array) -> Array:
    """Cannot be written to, since others will read it; a copy of what belongs to somebody else."""
    own = tensor if tensor.base is None and tensor.flags.owndata else tensor.copy()
    own.flags.writeable = False
    return own

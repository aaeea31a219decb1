"""Mask networks that a user supplies as ONNX files, run by ONNX Runtime on the CPU.

A network takes one picture (1, 3, 1024, 1024) fp32 and gives one plane, as logits or as values in [0, 1];
:mod:`saishiki.runtime.pipelines.colorizediffusion.segmentation` says how pictures go in.
"""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.errors import BackendError
from saishiki.runtime.pipelines.colorizediffusion.segmentation import (
    reference_mask,
    reference_network_pixels,
    sketch_mask,
    sketch_network_pixels,
)
from saishiki.runtime.pipelines.reference_cache import Key
from saishiki.runtime.signature import Array

MAX_NETWORKS = 2
"""Networks that stay loaded: one for sketches, one for references."""


@dataclass
class MaskNetworks:
    """The networks that were used last, each known by its file. Thread-safe."""

    _sessions: OrderedDict[Key, Any] = field(default_factory=OrderedDict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def of_sketch(self, network: str | os.PathLike[str], sketch: Array) -> Array:
        """(1, 1, H, W) fp32 in [0, 1] for a prepared sketch (1, 3, H, W)."""
        height, width = sketch.shape[-2:]
        plane = self._run(network, sketch_network_pixels(sketch))
        return sketch_mask(plane, height=height, width=width, logits=_is_logits(plane))

    def of_picture(
        self, network: str | os.PathLike[str], rgb: NDArray[np.uint8], *, dilate: bool = True
    ) -> NDArray[np.float32]:
        """(H, W) fp32 in [0, 1] for a picture (H, W, 3) uint8."""
        plane = self._run(network, reference_network_pixels(rgb))
        height, width = rgb.shape[:2]
        return reference_mask(plane, height=height, width=width, logits=_is_logits(plane), dilate=dilate)

    def _run(self, network: str | os.PathLike[str], pixels: Array) -> Array:
        session = self._session(network)
        outputs = session.run(None, {session.get_inputs()[0].name: pixels})
        return np.asarray(outputs[0])

    def _session(self, network: str | os.PathLike[str]) -> Any:
        key = network_key(network)
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = _open(Path(network))
            self._sessions.move_to_end(key)
            while len(self._sessions) > MAX_NETWORKS:
                self._sessions.popitem(last=False)
            return self._sessions[key]


def network_key(network: str | os.PathLike[str]) -> Key:
    """What the file is known by: path, time of its last change and size; raises ``OSError`` where there is none."""
    status = Path(network).stat()
    return str(Path(network).absolute()), status.st_mtime_ns, status.st_size


def _open(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"a mask network runs on ONNX Runtime, which is not installed ({error}); install it with: "
            "pip install 'saishiki[cpu]', or give masks instead of a network"
        ) from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no class
        raise BackendError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}") from error
    if len(session.get_inputs()) != 1:
        names = ", ".join(spec.name for spec in session.get_inputs())
        raise BackendError(f"{path}: expected a mask network with one input (1, 3, 1024, 1024), it has {names}")
    return session


def _is_logits(plane: Array) -> bool:
    """Whether a plane still wants its sigmoid: logits of a whole picture do not all lie in [0, 1]."""
    return bool(plane.min() < 0 or plane.max() > 1)

"""TensorRT-RTX compiles an engine's kernels on the GPU it meets; this keeps them between processes."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)


class RuntimeCache:
    """Kernels that TensorRT-RTX compiled for this GPU, in a file. A cache that cannot be used is only slower."""

    def __init__(self, config: Any, path: Path) -> None:
        self._config, self._path = config, path
        self.handle = config.create_runtime_cache()
        with contextlib.suppress(FileNotFoundError):
            self._load(path)

    def _load(self, path: Path) -> None:
        try:
            if not self.handle.deserialize(path.read_bytes()):
                _LOG.info("%s is of another GPU, driver or version; kernels are compiled anew", path)
        except FileNotFoundError:
            raise
        except Exception as error:
            _LOG.warning("%s cannot be read (%s); kernels are compiled anew", path, error)

    def save(self) -> None:
        """Writes the file anew, complete or not at all."""
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(memoryview(self.handle.serialize()))
            part.replace(self._path)
        except OSError as error:
            _LOG.warning("%s cannot be written (%s); kernels will be compiled again", self._path, error)

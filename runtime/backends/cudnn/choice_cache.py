"""The engines that were fastest, kept between processes: a JSON file per operation, in a folder per GPU and version.

A file is found by the hash of what it is about, and compared with it before it is used: one that is damaged, or says
other things than expected, counts as absent. A cache that cannot be written is only slower.
"""

import hashlib
import logging
import os
import re
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from saishiki.runtime.backends.cudnn.operation import Operation, written_operation
from saishiki.runtime.backends.cudnn.planner import Planner
from saishiki.runtime.cache import cache_folder

_LOG = logging.getLogger(__name__)
_DIGEST_LENGTH = 16


@dataclass(frozen=True)
class Timing:
    """What a plan by one engine took, and the scratch memory that it needs."""

    engine: str
    ms: float
    workspace_bytes: int


@dataclass(frozen=True)
class Failure:
    """Why an engine was left out."""

    engine: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The fastest engine, and what all candidates took, in cuDNN's order."""

    engine: str
    timings: tuple[Timing, ...]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Circumstances:
    """What a choice depends on besides the operation.

    Args:
        gpu: its name.
        sm: its compute capability, 90 being 9.0.
        multiprocessors: how many it has; parts of a GPU (MIG) have fewer.
        cudnn: cuDNN's version.
        frontend: its frontend's.
        workspace_limit_bytes: the most scratch memory that an engine may need.
    """

    gpu: str
    sm: int
    multiprocessors: int
    cudnn: str
    frontend: str
    workspace_limit_bytes: int

    @property
    def folder_name(self) -> str:
        """Readable, and different for different circumstances."""
        readable = f"{self.gpu}-sm{self.sm}-{self.multiprocessors}-cudnn-{self.cudnn}-frontend-{self.frontend}"
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', readable)}-{_digest(asdict(self))}"


def circumstances_of(planner: Planner, *, gpu: str, multiprocessors: int) -> Circumstances:
    """The circumstances of the plans of a planner on the GPU of that name and so many multiprocessors."""
    cudnn = planner.cudnn
    return Circumstances(
        gpu, planner.sm, multiprocessors, cudnn.version, cudnn.frontend_version, planner.workspace_limit_bytes
    )


@dataclass(frozen=True)
class _Entry:
    circumstances: Circumstances
    operation: dict[str, Any]
    choice: Choice
    digest: str


class ChoiceCache:
    """The choices of one GPU and version, read when they are asked for; any number of processes may use it at once.

    Args:
        folder: None takes the user's.
    """

    def __init__(self, circumstances: Circumstances, folder: Path | None = None) -> None:
        self._circumstances = circumstances
        self.folder = (cache_folder("cudnn") if folder is None else folder) / circumstances.folder_name

    def path(self, operation: Operation) -> Path:
        """Where the choice of an operation is, or would be."""
        written = written_operation(operation)
        return self.folder / f"{written['kind'].lower()}-{_digest(written)}.json"

    def read(self, operation: Operation) -> Choice | None:
        """The kept choice; None where there is none that can be relied on."""
        path = self.path(operation)
        try:
            entry = msgspec.json.decode(path.read_bytes(), type=_Entry)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            _LOG.warning("%s cannot be read (%s); engines are timed anew", path, error)
            return None
        if entry != self._entry(operation, entry.choice):
            _LOG.warning("%s is damaged, or about something else; engines are timed anew", path)
            return None
        return entry.choice

    def write(self, operation: Operation, choice: Choice) -> None:
        """Keeps a choice, completely or not at all."""
        path = self.path(operation)
        part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        content = msgspec.json.format(msgspec.json.encode(self._entry(operation, choice)), indent=1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content + b"\n")
            part.replace(path)
        except OSError as error:
            _LOG.warning("%s cannot be written (%s); engines will be timed again", path, error)

    def _entry(self, operation: Operation, choice: Choice) -> _Entry:
        written = msgspec.json.decode(msgspec.json.encode(written_operation(operation)))
        digest = _digest([asdict(self._circumstances), written, asdict(choice)])
        return _Entry(self._circumstances, written, choice, digest)


def _digest(content: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:_DIGEST_LENGTH]

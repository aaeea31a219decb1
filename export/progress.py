"""What an export says while it runs."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Stage:
    """A stage of an export, and its share of the whole in percent as measured, for the estimated time."""

    name: str
    share: float


READ = Stage("read checkpoint", 1)
SCAN = Stage("scan activations", 1)
GRAPHS = Stage("write ONNX graphs", 44)
REFERENCE = Stage("run PyTorch reference", 24)
ENGINES = Stage("build engines", 6)
CERTIFY = Stage("certify against reference", 23)
WRITE = Stage("write bundle", 1)
STAGES = (READ, SCAN, GRAPHS, REFERENCE, ENGINES, CERTIFY, WRITE)


class Observer(Protocol):
    """Is told what an export does."""

    def stage(self, stage: Stage) -> None:
        """A stage begins; the one before it has ended."""
        ...

    def part(self, name: str, done: int, total: int) -> None:
        """A part of the current stage begins; ``done`` of its ``total`` parts have ended."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know."""
        ...


class Silent:
    """Says nothing."""

    def stage(self, stage: Stage) -> None:
        """Ignored."""

    def part(self, name: str, done: int, total: int) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""

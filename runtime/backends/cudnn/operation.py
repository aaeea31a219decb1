"""What cuDNN plans as one kernel: the protocol of an operation, and how one is written down."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

from saishiki.runtime.backends.cudnn.layout import Layout


class Operation(Protocol):
    """A frozen dataclass of sizes, from which tensors and graph follow."""

    compiled_when_planned: ClassVar[bool]
    """Whether cuDNN makes its kernel while it is planned, which takes a driver and seconds."""

    def layouts(self) -> Mapping[str, Layout]:
        """How each of its tensors lies in memory, the output ``y`` last; all are half precision."""
        ...

    def record(self, graph: Any, tensors: Mapping[str, Any]) -> Any:
        """Adds the computation to a ``cudnn.pygraph``, from all inputs by name, and returns the tensor ``y``."""
        ...


def written_operation(operation: Operation) -> dict[str, Any]:
    """An operation as plain data: its class as ``kind``, and its fields."""
    return {"kind": type(operation).__name__, **asdict(operation)}  # type: ignore[call-overload]


def checked_sizes(operation: Any, *names: str) -> None:
    """Raises ``ValueError`` where one of an operation's sizes is not a positive integer."""
    for name in names:
        size = getattr(operation, name)
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{type(operation).__name__}: {name} is {size!r}, expected a positive integer")


def checked_channels(operation: Any, *names: str) -> None:
    """Raises ``ValueError`` where one of an operation's channel counts is not padded to a multiple of 8."""
    checked_sizes(operation, *names)
    for name in names:
        if getattr(operation, name) % 8:
            raise ValueError(
                f"{type(operation).__name__}: {name} is {getattr(operation, name)}, expected a multiple of 8; "
                "pad the tensor with zero channels"
            )

"""A launch of a ready-made kernel, before anything is enqueued."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Address = Callable[[str], int]
"""Where a tensor of a plan lies in device memory."""


@dataclass(frozen=True)
class Launch:
    """A kernel of ``runtime/cubins``, and what it is passed; its grid follows from the arguments."""

    kernel: str
    arguments: Mapping[str, int | float]

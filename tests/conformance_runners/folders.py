"""A folder for what a process exports once, outside of any test's own."""

import tempfile
from functools import cache
from pathlib import Path


def folder_of(name: str) -> Path:
    """A new folder of this name, removed when the process ends."""
    folder = Path(_everything().name) / name
    folder.mkdir()
    return folder


@cache
def _everything() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="saishiki-conformance-")

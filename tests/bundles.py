"""Changing copies of a bundle, openly (the manifest notices) or consistently (it does not)."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from saishiki.runtime.manifest import digest_of


def copy_bundle(bundle: Path, folder: Path) -> Path:
    """A copy inside ``folder`` that a test may change."""
    return Path(shutil.copytree(bundle, folder / "copy.saishiki"))


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest as plain JSON, and its digest with it."""
    path = bundle / "manifest.json"
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields | {"digest": digest_of(fields)}))


def flip_byte(file: Path) -> None:
    """Changes one byte in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def perturb_weights(content: bytes, *, count: int = 16) -> bytes:
    """A file of fp32 weights with one percent added to the first ``count`` of them."""
    weights = np.frombuffer(content, np.float32).copy()
    weights[:count] *= np.float32(1.01)
    return weights.tobytes()


def rewrite_file(bundle: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Changes a file and the manifest's entry with it, as somebody would who wants it to pass for whole."""
    file = bundle / name
    content = change(file.read_bytes())
    file.write_bytes(content)
    edit_manifest(bundle, lambda fields: _restate(fields, name, content))


def _restate(value: Any, name: str, content: bytes) -> None:
    if isinstance(value, dict):
        if value.get("path") == name:
            value |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for item in value.values():
            _restate(item, name, content)
    elif isinstance(value, list):
        for item in value:
            _restate(item, name, content)

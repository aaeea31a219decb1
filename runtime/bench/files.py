"""Files that appear under their name only when they are complete."""

import os
import secrets
from pathlib import Path


def check_folder(path: Path) -> None:
    """Raises ``FileNotFoundError`` where a file's folder is missing, ``IsADirectoryError`` where it is one itself."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: create it before writing {path.name}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file to write")


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        # Opened plainly, not through tempfile, so that the file gets the caller's usual permissions.
        with partial.open("xb") as stream:
            stream.write(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

"""Where all is kept that may be made again: engines, compiled kernels, timings."""

import os
from pathlib import Path


def cache_folder(content: str) -> Path:
    """The folder for one kind of content: in ``$SAISHIKI_CACHE``, else in ``saishiki`` in the user's cache folder."""
    if own := os.environ.get("SAISHIKI_CACHE"):
        return Path(own).expanduser() / content
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saishiki" / content

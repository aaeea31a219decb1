"""Which sources run on which GPU, and how they are imported from a plain checkout. Standard library only."""

import contextlib
import hashlib
import importlib.util
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("export", "kernels", "models", "runtime")
MEASURED = ("benchmarks", *FOLDERS)


def importable(folder: Path) -> dict[str, str]:
    """An environment in which ``saishiki`` can be imported; links to the checkout where it is not installed."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    try:
        found = importlib.util.find_spec("saishiki.runtime") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        package = folder / "path" / "saishiki"
        package.mkdir(parents=True)
        for name in FOLDERS:
            (package / name).symlink_to(ROOT / name, target_is_directory=True)
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(package.parent), os.environ.get("PYTHONPATH"))))
    return environ


def asked(query: str) -> str | None:
    """What ``nvidia-smi`` says of the first GPU; None without one."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    with contextlib.suppress(FileNotFoundError, subprocess.CalledProcessError, IndexError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    return None


def gpu_name() -> str:
    """The GPU's name as a folder: ``nvidia-h200``, or ``none``."""
    return re.sub(r"[^a-z0-9]+", "-", (asked("name") or "none").lower()).strip("-")


def commit_of_checkout() -> str:
    """The commit, with ``-dirty`` where files differ from it; ``unknown`` without git or a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return "unknown"


def sources_digest(root: Path = ROOT) -> str:
    """SHA-256 of all Python files and cubins that are measured: also tells two copies without git apart."""
    digest = hashlib.sha256()
    for folder in MEASURED:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".cubin"):
                digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()

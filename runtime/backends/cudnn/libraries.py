"""Finding cuDNN and its Python frontend, and checking that they are of versions that are known to work.

Nothing is imported or loaded before :func:`load_cudnn` is called. cuDNN comes with a wheel, below ``nvidia/cudnn/lib``,
or is on the loader's path.
"""

import ctypes
import importlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from saishiki.runtime.errors import BackendError

INSTALL = "pip install 'nvidia-cudnn-frontend>=1.22.1,<1.28' 'nvidia-cudnn-cu13>=9.19,<10' 'nvidia-cuda-nvrtc>=13,<14'"
"""What the extra ``[cuda]`` installs of it."""

FRONTENDS = ((1, 22), (1, 28))
"""From this version of the frontend on, and before that one: 1.32 requires half a gigabyte of compilers."""

CUDNNS = ((9, 19), (10, 0))
"""From this version of cuDNN on, and before that one."""


@dataclass(frozen=True)
class Cudnn:
    """The loaded libraries.

    Args:
        frontend: the module ``cudnn``.
        version: of cuDNN, such as ``9.19.0``.
        frontend_version: of the module, such as ``1.22.1``.
    """

    frontend: Any
    version: str
    frontend_version: str

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What the frontend raises for a graph that cuDNN refuses."""
        return RuntimeError, self.frontend.cudnnGraphNotSupportedError


@cache
def load_cudnn() -> Cudnn:
    """cuDNN and its frontend; raises ``BackendError`` saying what to install where one is missing or too old or new."""
    _load_from_wheel()
    frontend = _import_frontend()
    frontend_version = str(getattr(frontend, "__version__", "unknown"))
    _check_version("nvidia-cudnn-frontend", frontend_version, FRONTENDS)
    try:
        version = version_from_number(int(frontend.backend_version()))
    except RuntimeError as error:
        raise BackendError(f"cuDNN (libcudnn.so.9) is not found: {error}; run: {INSTALL}") from error
    _check_version("cuDNN", version, CUDNNS)
    return Cudnn(frontend, version, frontend_version)


def why_cudnn_unavailable() -> str | None:
    """Why cuDNN cannot be used here, or None where it can; what is wrong with the driver, ``driver_problem`` says."""
    try:
        load_cudnn()
    except BackendError as error:
        return str(error)
    return None


def version_from_number(number: int) -> str:
    """cuDNN's version as people write it: 91900 is ``9.19.0``."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _import_frontend() -> Any:
    try:
        frontend = importlib.import_module("cudnn")
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"nvidia-cudnn-frontend is not installed or not complete ({error}); run: {INSTALL}"
        ) from error
    if not hasattr(frontend, "pygraph"):
        raise BackendError(f"the module cudnn at {frontend.__file__} is not nvidia-cudnn-frontend; run: {INSTALL}")
    return frontend


def _check_version(name: str, version: str, between: tuple[tuple[int, int], tuple[int, int]]) -> None:
    first, end = between
    if not first <= _numbers(version) < end:
        expected = f"{first[0]}.{first[1]} or newer, before {end[0]}.{end[1]}"
        raise BackendError(f"{name} {version} is installed, expected {expected}; run: {INSTALL}")


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version; of one that begins with none, nothing."""
    digits = []
    for part in version.split(".")[:2]:
        if not part.isdigit():
            break
        digits.append(int(part))
    return tuple(digits)


def _load_from_wheel() -> None:
    """Loads the wheel's library, if there is one, so that the frontend finds it by its name.

    The frontend itself looks into one of Python's folders of packages, which is not where each installation is.
    """
    libraries = [folder / "cudnn" / "lib" / "libcudnn.so.9" for folder in _wheel_folders()]
    for library in filter(Path.exists, libraries):
        try:
            ctypes.CDLL(os.fspath(library), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise BackendError(f"cuDNN does not load ({error}); install it anew: {INSTALL}") from error
        return


def _wheel_folders() -> Iterator[Path]:
    """The folders of the namespace package ``nvidia``, without importing anything of it."""
    found = importlib.util.find_spec("nvidia")
    for folder in (found and found.submodule_search_locations) or ():
        yield Path(folder)

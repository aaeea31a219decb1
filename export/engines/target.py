"""What an engine is built for, and by which builder."""

import ctypes
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from saishiki.runtime.errors import BackendError

EngineBackend = Literal["tensorrt-rtx", "tensorrt", "cuda"]

# The compute capabilities that TensorRT-RTX builds for. None of them is 9.0: H100 and H200 have no TensorRT-RTX.
RTX_SMS = (75, 80, 86, 89, 120, 121)
DEFAULT_SM = 89  # RTX 4090

_EXTRAS: dict[EngineBackend, str] = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
_PACKAGES: dict[EngineBackend, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class Target:
    """The backend that runs an engine, and the one compute capability that it is built for, such as ``sm89``.

    A plan for the backend ``cuda`` is for ``any``: what differs between GPUs is chosen when it is loaded.
    """

    backend: EngineBackend
    name: str

    @property
    def sm(self) -> int:
        """The compute capability as a number: 89."""
        return int(self.name.removeprefix("sm"))

    def __str__(self) -> str:
        return f"{self.backend} {self.name}"


CUDA = Target("cuda", "any")
"""Plans for our own engine; made on any machine, without a GPU."""


@dataclass(frozen=True)
class Builder:
    """The package that builds engines, and its version."""

    name: str
    version: str


def parse_targets(targets: str | Iterable[str], sms: Iterable[int] = ()) -> tuple[Target, ...]:
    """The engines that ``--targets onnx,rtx --sm 89 --sm 86`` asks for: one per compute capability, in that order.

    Args:
        targets: names, or one text with commas. ``rtx`` stands for every one of ``sms`` (RTX 4090 where there is none),
            ``rtx:sm86`` for one compute capability, ``tensorrt`` for the GPU of this machine, ``cuda`` for plans of our
            own engine, and ``onnx`` for no engine: the graphs are in every bundle.

    Raises ``ValueError`` for a name or compute capability that does not exist, and ``BackendError`` where ``tensorrt``
    is asked for and the package or a GPU is missing.
    """
    names = _split(targets)
    asked = tuple(sms)
    if asked and "rtx" not in names:
        raise ValueError(f"--sm {asked[0]} concerns the target rtx, but the targets are {','.join(names)}; add rtx")
    found = [target for name in names for target in _targets_of(name, asked)]
    return tuple(dict.fromkeys(found))


def installed_builder(target: Target) -> Builder:
    """The builder for ``target`` on this machine; raises ``BackendError`` naming the extra to install."""
    if target == CUDA:
        return Builder("saishiki", version("saishiki"))
    builder = import_builder(target.backend)
    return Builder(builder.__name__, builder.__version__)


def import_builder(backend: EngineBackend) -> Any:
    """The Python package that builds for ``backend``; raises ``BackendError`` naming the extra to install."""
    try:
        return importlib.import_module(_PACKAGES[backend])
    except ImportError as error:
        raise BackendError(_missing(backend, error)) from error


def _split(targets: str | Iterable[str]) -> tuple[str, ...]:
    texts = (targets,) if isinstance(targets, str) else targets
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def _targets_of(name: str, sms: tuple[int, ...]) -> tuple[Target, ...]:
    kind, _, sm = name.partition(":")
    if name == "onnx":
        return ()
    if name == "cuda":
        return (CUDA,)
    if name == "tensorrt":
        return (Target("tensorrt", local_sm()),)
    if kind == "rtx" and (sm or name == "rtx"):
        return tuple(_rtx_target(value) for value in ((sm,) if sm else sms or (DEFAULT_SM,)))
    raise ValueError(f"no target {name!r}; expected onnx, rtx, rtx:sm89, tensorrt or cuda")


def _rtx_target(sm: str | int) -> Target:
    digits = str(sm).removeprefix("sm")
    if not digits.isdecimal() or int(digits) not in RTX_SMS:
        raise ValueError(_unsupported(digits))
    return Target("tensorrt-rtx", f"sm{digits}")


def _unsupported(sm: str) -> str:
    supported = f"TensorRT-RTX builds for {', '.join(f'sm{known}' for known in RTX_SMS)}"
    if sm == "90":
        return f"{supported}; not for sm90 (H100, H200): build for the target tensorrt on that machine"
    return f"{supported}; not for sm{sm}"


def local_sm() -> str:
    """The compute capability of this machine's first GPU, such as ``sm90``: enterprise TensorRT builds for no other.

    Raises ``BackendError`` where ``tensorrt``, the NVIDIA driver or a GPU is missing.
    """
    import_builder("tensorrt")
    try:
        ctypes.CDLL("libcuda.so.1")
        device: Any = importlib.import_module("cuda.core").Device(0)
        major, minor = device.compute_capability
    except ImportError as error:
        raise BackendError(_missing("tensorrt", error)) from error
    # Where there is no GPU cuda-core raises its own CUDAError, and without a driver ctypes raises OSError.
    except Exception as error:
        raise BackendError(
            f"the target tensorrt needs the GPU that will run it, and finds none here: {error}"
        ) from error
    return f"sm{major}{minor}"


def _missing(backend: EngineBackend, error: ImportError) -> str:
    where = " on the machine with the GPU that will run the engine" if backend == "tensorrt" else ""
    return f"engines for {backend} need a package ({error}); run{where}: pip install 'saishiki[{_EXTRAS[backend]}]'"

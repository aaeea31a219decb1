"""Choosing a backend: by name, or the fastest one that can run this bundle here."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from saishiki.runtime.backends import onnxruntime
from saishiki.runtime.backends.protocol import Backend
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BackendError

BACKENDS = ("tensorrt-rtx", "tensorrt", "onnxruntime", "cuda", "cuda-cudnn", "cuda-triton", "cuda-reference")
"""All backends. The last four run plans and are opened by name alone: three have not run on a GPU yet, one is numpy."""

AUTO = ("tensorrt-rtx", "tensorrt", "onnxruntime")
"""Those that ``auto`` tries, the fastest first."""

ON_CPU = ("onnxruntime", "cuda-reference")
"""Those that need no GPU, and run any sizes."""

PLANNED = ("cuda", "cuda-cudnn", "cuda-triton")
"""Those that run plans on a GPU."""

_UNAVAILABLE: dict[str, Callable[[], str | None]] = {
    "tensorrt-rtx": lambda: _tensorrt().why_unavailable("tensorrt-rtx"),
    "tensorrt": lambda: _tensorrt().why_unavailable("tensorrt"),
    "onnxruntime": lambda: onnxruntime.why_unavailable(cuda=False),
    **{name: partial(lambda name: _cuda().why_unavailable(name), name) for name in PLANNED},
    "cuda-reference": lambda: None,
}


def open_backend(bundle: Bundle, name: str = "auto", device: str | None = None) -> Backend:
    """Opens a backend for a bundle.

    Args:
        name: one of :data:`BACKENDS`, or ``auto`` for the fastest that has engines in the bundle and works here.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None takes what the backend is for.

    Raises ``BackendError`` where it cannot run here, ``ValueError`` for an unknown name or device.
    """
    index = device_index(device)
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"unknown backend {name!r}; expected auto or one of {', '.join(BACKENDS)}")
    if device == "cpu" and name not in ("auto", *ON_CPU):
        raise ValueError(f"{name} needs a GPU; use device cuda, or the backend onnxruntime")
    if index is not None and name == "cuda-reference":
        raise ValueError("cuda-reference runs on the CPU; use device cpu, or another backend")
    if name == "auto" and device != "cpu":
        return _fastest(bundle, index)
    return _open("onnxruntime" if name == "auto" else name, index)


def device_index(device: str | None) -> int | None:
    """The CUDA device number of ``cuda`` or ``cuda:N``; None for ``cpu`` and None."""
    if device in (None, "cpu"):
        return None
    match = re.fullmatch(r"cuda(?::([0-9]+))?", str(device))
    if match is None:
        raise ValueError(f"unknown device {device!r}; expected cpu, cuda or cuda:N")
    return int(match[1] or 0)


def why_unavailable(name: str) -> str | None:
    """Why a backend cannot run here, or None where it can."""
    return _UNAVAILABLE[name]()


def diagnose() -> dict[str, str | None]:
    """Why each backend cannot run on each kind of device here, or None where it can; the fastest first."""
    return {
        "tensorrt-rtx on cuda": why_unavailable("tensorrt-rtx"),
        "tensorrt on cuda": why_unavailable("tensorrt"),
        "cuda-cudnn on cuda": why_unavailable("cuda-cudnn"),
        "cuda-triton on cuda": why_unavailable("cuda-triton"),
        "onnxruntime on cuda": onnxruntime.why_unavailable(cuda=True),
        "onnxruntime on cpu": onnxruntime.why_unavailable(cuda=False),
    }


def _fastest(bundle: Bundle, index: int | None) -> Backend:
    """The first backend that has engines in the bundle which run here; raises ``BackendError`` with every reason."""
    built = {engine.backend for module in bundle.manifest.modules.values() for engine in module.engines}
    reasons = []
    for name in AUTO:
        if name != "onnxruntime" and name not in built:
            reasons.append(f"{name}: the bundle has no such engines")
            continue
        try:
            return _suitable(_open(name, index), bundle)
        except BackendError as error:
            reasons.append(f"{name}: {error}")
    raise BackendError("no backend can run this bundle here; " + "; ".join(reasons))


def _open(name: str, index: int | None) -> Backend:
    if name == "onnxruntime":
        return onnxruntime.OnnxRuntimeBackend(device=index)
    if name == "cuda-reference":
        return _cuda_reference()
    opened = _cuda().open_cuda if name in PLANNED else _tensorrt().open_tensorrt
    backend: Backend = opened(name, index or 0)
    return backend


def _suitable(backend: Backend, bundle: Bundle) -> Backend:
    """The backend, if it can run every module of the bundle; else it is closed, and the reason raised."""
    try:
        for name, module in bundle.manifest.modules.items():
            backend.check(bundle, name, module.closest(backend.default_precision))
    except BackendError:
        backend.close()
        raise
    return backend


def _cuda_reference() -> Backend:
    from saishiki.runtime.backends.cuda_reference import CudaReferenceBackend

    return CudaReferenceBackend()


def _cuda() -> Any:
    from saishiki.runtime.backends import cuda_backend

    return cuda_backend


def _tensorrt() -> Any:
    from saishiki.runtime.backends import tensorrt

    return tensorrt

"""Backends: ONNX Runtime, TensorRT for RTX and TensorRT behind one small protocol."""

from saishiki.runtime.backends.protocol import Backend, DenoisingLoop, Module
from saishiki.runtime.backends.select import AUTO, BACKENDS, ON_CPU, diagnose, open_backend, why_unavailable

__all__ = [
    "AUTO",
    "BACKENDS",
    "ON_CPU",
    "Backend",
    "DenoisingLoop",
    "Module",
    "diagnose",
    "open_backend",
    "why_unavailable",
]

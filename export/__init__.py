"""From a trained checkpoint to a bundle of ONNX graphs and engines, with proof that they compute the same.

The names are loaded on first use: the process that builds an engine imports this package too, without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saishiki.export.pipeline import CertificateFailed, ExportResult, export_bundle
    from saishiki.export.request import ExportRequest, parse_profiles

__all__ = ["CertificateFailed", "ExportRequest", "ExportResult", "export_bundle", "parse_profiles"]

_MODULES = {"ExportRequest": "request", "parse_profiles": "request"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'pipeline')}"), name)

"""From a trained checkpoint to a bundle of ONNX graphs and engines, with proof that they compute the same."""

from saishiki.export.pipeline import CertificateFailed, ExportResult, export_bundle
from saishiki.export.request import ExportRequest, parse_profiles

__all__ = ["CertificateFailed", "ExportRequest", "ExportResult", "export_bundle", "parse_profiles"]

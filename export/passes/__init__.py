"""Rewrites of an exported ONNX graph, one per file. ``PASSES`` is the order in which all of them run."""

from saishiki.export.passes.declare_interface import declare_interface
from saishiki.export.passes.order import PASSES
from saishiki.export.passes.strip_metadata import strip_metadata

__all__ = ["PASSES", "declare_interface", "strip_metadata"]

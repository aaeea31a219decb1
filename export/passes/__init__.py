"""Rewrites of an exported ONNX graph, one per file. ``PASSES`` is the order in which all of them run."""

from collections.abc import Callable

import onnx_ir as ir

from saishiki.export.passes.declare_interface import declare_interface
from saishiki.export.passes.strip_metadata import strip_metadata
from saishiki.runtime.signature import Signature

PASSES: tuple[Callable[[ir.Model, Signature], None], ...] = (strip_metadata, declare_interface)

__all__ = ["PASSES", "declare_interface", "strip_metadata"]

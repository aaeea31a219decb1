"""The order in which the passes run."""

from collections.abc import Callable

import onnx_ir as ir

from saishiki.export.passes.declare_interface import declare_interface
from saishiki.export.passes.strip_metadata import strip_metadata
from saishiki.runtime.signature import Signature

PASSES: tuple[Callable[[ir.Model, Signature], None], ...] = (strip_metadata, declare_interface)

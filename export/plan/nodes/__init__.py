"""How each ONNX operator enters a plan; :data:`LOWERINGS` is the whole list."""

from saishiki.export.plan.nodes.table import LOWERINGS

__all__ = ["LOWERINGS"]

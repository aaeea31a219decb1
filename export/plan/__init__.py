"""From a written ONNX graph to a plan of launches: see ``docs/plans.md``."""

from saishiki.export.plan.draft import LoweringError
from saishiki.export.plan.lower import LoweredPlan, lower_graph, lower_module
from saishiki.export.plan.write import write_plans

__all__ = ["LoweredPlan", "LoweringError", "lower_graph", "lower_module", "write_plans"]

"""Plans: a module as a short list of launches over an arena. See ``docs/plans.md``."""

from saishiki.runtime.plan.arena import Arena, lay_out
from saishiki.runtime.plan.interpreter import interpret
from saishiki.runtime.plan.plan import Buffer, HoistedVector, Plan, WeightSpec, json_from_plan, plan_from_json

__all__ = [
    "Arena",
    "Buffer",
    "HoistedVector",
    "Plan",
    "WeightSpec",
    "interpret",
    "json_from_plan",
    "lay_out",
    "plan_from_json",
]

"""Plans in a file: each distinct convolution with its variant, the serialized plan, and what made them."""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from executor_window.layers import Conv
from executor_window.operands import BIAS, RESIDUAL_BIAS, Variant

VARIANTS: Mapping[str, Variant] = {variant.name: variant for variant in (BIAS, RESIDUAL_BIAS)}


@dataclass(frozen=True)
class SavedPlan:
    """A plan, which holds no weights, and the convolution it is for."""

    conv: Conv
    variant: Variant
    plan: bytes


@dataclass(frozen=True)
class PlanFile:
    """Plans for one compute capability by one version of cuDNN; ``made_by`` also names the frontend's."""

    sm: int
    made_by: Mapping[str, Any]
    plans: tuple[SavedPlan, ...]


def write_plans(file: PlanFile, path: Path) -> None:
    """Writes JSON."""
    rows = [
        {"conv": asdict(saved.conv), "variant": saved.variant.name, "plan": base64.b64encode(saved.plan).decode()}
        for saved in file.plans
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"sm": file.sm, "made_by": file.made_by, "plans": rows}) + "\n")


def read_plans(path: Path) -> PlanFile:
    """Raises ``ValueError`` for a file of another kind."""
    try:
        whole = json.loads(path.read_text())
        plans = tuple(
            SavedPlan(Conv(**row["conv"]), VARIANTS[row["variant"]], base64.b64decode(row["plan"], validate=True))
            for row in whole["plans"]
        )
        return PlanFile(whole["sm"], whole["made_by"], plans)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no plans of executor_window/cpu_plans.py ({error}); make it anew") from error

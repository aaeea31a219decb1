"""How far a graph may be from the reference, given what rounding to fp16 does to the reference itself."""

import math
from collections.abc import Mapping

from saishiki.runtime.manifest import Precision

FP32_FACTOR = 16.0 * 2.0**-13
"""Of the error that rounding to fp16 makes, whose unit is 2^13 times that of fp32."""
FP16_FLOOR = 1e-4
FP16_FACTOR = 2.0
PSNR_SLACK_DB = 6.0


def budget_of(precision: Precision, rounded: float, *, fp32: float) -> float:
    """The largest relative error (L2) that a graph may make.

    Args:
        rounded: the error that rounding to fp16 makes in the reference; NaN where it overflows.
        fp32: the family's budget of fp32 graphs.
    """
    if precision == "fp32":
        # Where rounding to fp16 shows that errors grow, those of fp32 do too, in proportion.
        return max(fp32, FP32_FACTOR * rounded) if math.isfinite(rounded) else fp32
    # Where rounding alone takes the reference out of fp16's range there is nothing to measure by.
    return FP16_FACTOR * rounded + FP16_FLOOR if math.isfinite(rounded) else FP16_FLOOR


def least_psnr(precision: Precision, rounded: float, least: Mapping[Precision, float]) -> float:
    """The least PSNR in dB that a run's image may have.

    Args:
        rounded: the PSNR of the reference's image with rounded modules; NaN where it overflows.
        least: the family's bounds.
    """
    if precision == "fp32" or not math.isfinite(rounded):
        return least[precision]
    return min(least["fp32"], max(least["fp16"], rounded - PSNR_SLACK_DB))

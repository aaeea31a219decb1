"""How long a plan should take on a GPU: a model, not a measurement.

Each launch takes the longer of its arithmetic, at the rate that its kind of product reaches, and its bytes at the
bandwidth, and one gap besides. Rates are estimates from published measurements of cuDNN; ``benchmarks/gpu_battery.py``
measures what they stand for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from saishiki.runtime.plan.extents import Extents
from saishiki.runtime.plan.ops import AnyOp, Convolution
from saishiki.runtime.plan.plan import Plan


@dataclass(frozen=True)
class Gpu:
    """What the model takes of a GPU, in bytes, FLOP and seconds.

    Args:
        bandwidth: bytes per second.
        gap_s: what a launch inside a CUDA graph costs besides its work.
        convolution_flops: FLOP per second of convolutions of more than one tap, by filters: those of the largest key
            that is not above a convolution's own, else of the smallest.
        product_flops: FLOP per second of all other products.
    """

    name: str
    bandwidth: float
    gap_s: float
    convolution_flops: Mapping[int, float]
    product_flops: float


GPUS = (
    Gpu("H200", 4.3e12, 1.2e-6, {64: 356e12, 128: 544e12, 256: 495e12}, 300e12),
    Gpu("RTX 4090", 1.2e12, 1.5e-6, {64: 115e12, 128: 130e12, 256: 130e12}, 80e12),
)


def modelled_s(op: AnyOp, extents: Extents, gpu: Gpu) -> float:
    """Seconds of one launch."""
    cost = op.cost(extents)
    return max(cost.flops / _rate(op, extents, gpu), cost.bytes / gpu.bandwidth) + gpu.gap_s


def modelled_plan_s(plan: Plan, extents: Extents, gpu: Gpu) -> float:
    """Seconds of a whole plan."""
    return sum(modelled_s(op, extents, gpu) for op in plan.ops)


def _rate(op: AnyOp, extents: Extents, gpu: Gpu) -> float:
    if not isinstance(op, Convolution) or extents.shape(op.weight)[1:3] == (1, 1):
        return gpu.product_flops
    filters = extents.shape(op.weight)[0]
    below = [known for known in gpu.convolution_flops if known <= filters]
    return gpu.convolution_flops[max(below, default=min(gpu.convolution_flops))]

"""The vocabulary of plans: a dozen operations, each declared once with its reference, its cost and who runs it."""

from saishiki.runtime.plan.ops.any_op import AnyOp
from saishiki.runtime.plan.ops.attention import Attention
from saishiki.runtime.plan.ops.convolution import Convolution
from saishiki.runtime.plan.ops.copy import Copy
from saishiki.runtime.plan.ops.group_norm import InputNorm, NormApply, NormInput, NormStatistics
from saishiki.runtime.plan.ops.layer_norm import LayerNorm
from saishiki.runtime.plan.ops.matmul import Matmul
from saishiki.runtime.plan.ops.op import Cost, Op, OpBackend
from saishiki.runtime.plan.ops.pointwise import Function, Pointwise
from saishiki.runtime.plan.ops.pool import Mean, Pool
from saishiki.runtime.plan.ops.region_order import RegionOrder
from saishiki.runtime.plan.ops.split_attention import MaskedSplitCrossAttention, SplitProjection

__all__ = [
    "AnyOp",
    "Attention",
    "Convolution",
    "Copy",
    "Cost",
    "Function",
    "InputNorm",
    "LayerNorm",
    "MaskedSplitCrossAttention",
    "Matmul",
    "Mean",
    "NormApply",
    "NormInput",
    "NormStatistics",
    "Op",
    "OpBackend",
    "Pointwise",
    "Pool",
    "RegionOrder",
    "SplitProjection",
]

"""All operations as one type."""

from saishiki.runtime.plan.ops.attention import Attention
from saishiki.runtime.plan.ops.convolution import Convolution
from saishiki.runtime.plan.ops.copy import Copy
from saishiki.runtime.plan.ops.group_norm import NormApply, NormStatistics
from saishiki.runtime.plan.ops.layer_norm import LayerNorm
from saishiki.runtime.plan.ops.matmul import Matmul
from saishiki.runtime.plan.ops.pointwise import Pointwise
from saishiki.runtime.plan.ops.pool import Mean, Pool
from saishiki.runtime.plan.ops.region_order import RegionOrder
from saishiki.runtime.plan.ops.split_attention import MaskedSplitCrossAttention, SplitProjection

AnyOp = (
    Attention
    | Convolution
    | Copy
    | LayerNorm
    | MaskedSplitCrossAttention
    | Matmul
    | Mean
    | NormApply
    | NormStatistics
    | Pointwise
    | Pool
    | RegionOrder
    | SplitProjection
)
"""Any operation, told apart by its ``op`` in JSON."""

"""Which function launches which operation."""

from collections.abc import Callable, Mapping
from typing import Any

from saishiki.runtime.backends.launches import attention, convolution, group_norm, layer_norm, pointwise, pool, regions
from saishiki.runtime.backends.launches.launch import Address, Launch
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.extents import Extents
from saishiki.runtime.plan.ops import (
    AnyOp,
    Attention,
    Convolution,
    Copy,
    LayerNorm,
    MaskedSplitCrossAttention,
    Matmul,
    Mean,
    NormApply,
    NormStatistics,
    Op,
    Pointwise,
    Pool,
    RegionOrder,
    SplitProjection,
)

_LAUNCHES: Mapping[type[Op], Callable[[Any, Extents, Address, int], tuple[Launch, ...]]] = {
    Attention: attention.attention_launches,
    Convolution: convolution.convolution_launches,
    Copy: pointwise.copy_launches,
    LayerNorm: layer_norm.layer_norm_launches,
    MaskedSplitCrossAttention: regions.masked_split_cross_attention_launches,
    Matmul: convolution.matmul_launches,
    Mean: pool.mean_launches,
    NormApply: group_norm.apply_launches,
    NormStatistics: group_norm.statistics_launches,
    Pointwise: pointwise.pointwise_launches,
    Pool: pool.pool_launches,
    RegionOrder: regions.region_order_launches,
    SplitProjection: regions.split_projection_launches,
}


def launches_of(op: AnyOp, extents: Extents, address: Address, *, sms: int) -> tuple[Launch, ...]:
    """The launches of an operation.

    Args:
        sms: multiprocessors of the GPU.

    Raises ``BackendError`` where no shipped kernel computes it.
    """
    launches = _LAUNCHES.get(type(op))
    if launches is None:
        raise BackendError(f"no kernel runs the operation {type(op).__name__}; use the backend cuda-reference")
    return launches(op, extents, address, sms)


def workspaces_of(op: AnyOp, extents: Extents, *, sms: int) -> dict[str, int]:
    """The bytes of the workspaces that an operation's launches need, by name; they share those of others."""
    return group_norm.workspaces(op, extents, sms) if isinstance(op, NormStatistics) else {}

"""GroupNorm with SiLU behind it, and with what comes before it: concat, upsampling, residual and time embedding."""

from saishiki.kernels.group_norm_silu.op import group_norm_silu
from saishiki.kernels.group_norm_silu.reference import group_norm_silu_reference
from saishiki.kernels.group_norm_silu.variants import VARIANTS

__all__ = ["VARIANTS", "group_norm_silu", "group_norm_silu_reference"]

"""Fused Triton kernels, each beside its plain torch reference; ``README.md`` shows what they compute."""

from saishiki.kernels.attention import attention, attention_reference
from saishiki.kernels.attention_processor import MaskedSplitCrossAttnProcessor, RegionProjections
from saishiki.kernels.convolution import (
    InputNorm,
    convolution,
    convolution_from_images,
    convolution_from_images_reference,
    convolution_reference,
    convolution_to_image,
    convolution_to_image_reference,
)
from saishiki.kernels.fused_sampler_step import fused_sampler_step, fused_sampler_step_reference
from saishiki.kernels.group_norm_silu import group_norm_silu, group_norm_silu_reference
from saishiki.kernels.masked_split_cross_attention import (
    SEMANTICS,
    Selection,
    SplitSemantics,
    masked_split_cross_attention,
    masked_split_cross_attention_reference,
    token_order,
)
from saishiki.kernels.split_projection import split_projection, split_projection_reference

__all__ = [
    "SEMANTICS",
    "InputNorm",
    "MaskedSplitCrossAttnProcessor",
    "RegionProjections",
    "Selection",
    "SplitSemantics",
    "attention",
    "attention_reference",
    "convolution",
    "convolution_from_images",
    "convolution_from_images_reference",
    "convolution_reference",
    "convolution_to_image",
    "convolution_to_image_reference",
    "fused_sampler_step",
    "fused_sampler_step_reference",
    "group_norm_silu",
    "group_norm_silu_reference",
    "masked_split_cross_attention",
    "masked_split_cross_attention_reference",
    "split_projection",
    "split_projection_reference",
    "token_order",
]

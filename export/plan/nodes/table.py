"""Which function lowers which operator."""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from saishiki.export.plan.draft import Draft
from saishiki.export.plan.nodes import arithmetic, networks, regions, shapes

OURS = "saishiki"
"""The domain of our own nodes."""

LOWERINGS: Mapping[str, Callable[[ir.Node, Draft], None]] = {
    "Add": arithmetic.lower_add,
    "Attention": networks.lower_attention,
    "AveragePool": networks.lower_average_pool,
    "Cast": shapes.lower_cast,
    "Clip": arithmetic.lower_clip,
    "Concat": shapes.lower_concat,
    "ConstantOfShape": shapes.lower_constant_of_shape,
    "Conv": networks.lower_conv,
    "Cos": arithmetic.lower_cos,
    "Div": arithmetic.lower_div,
    "Expand": shapes.lower_expand,
    "Gather": shapes.lower_gather,
    "Gelu": arithmetic.lower_gelu,
    "Gemm": networks.lower_gemm,
    "Greater": arithmetic.lower_greater,
    "GroupNormalization": networks.lower_group_norm,
    "LayerNormalization": networks.lower_layer_norm,
    "MatMul": networks.lower_matmul,
    "Mul": arithmetic.lower_mul,
    "Pad": shapes.lower_pad,
    "ReduceMean": networks.lower_mean,
    "Reshape": shapes.lower_reshape,
    "Resize": networks.lower_resize,
    "Shape": shapes.lower_shape,
    "Sigmoid": arithmetic.lower_sigmoid,
    "Sin": arithmetic.lower_sin,
    "Slice": shapes.lower_slice,
    "Split": shapes.lower_split,
    "Squeeze": shapes.lower_squeeze,
    "Sub": arithmetic.lower_sub,
    "Tile": shapes.lower_tile,
    "Transpose": shapes.lower_transpose,
    "Unsqueeze": shapes.lower_unsqueeze,
    "Where": arithmetic.lower_where,
    f"{OURS}::MaskedSplitCrossAttention": regions.lower_masked_split_cross_attention,
    f"{OURS}::MaskedSplitCrossAttentionMerge": regions.lower_masked_split_cross_attention,
    f"{OURS}::MaskedSplitCrossAttentionTwoQueries": regions.lower_masked_split_cross_attention,
    f"{OURS}::SplitProjection": regions.lower_split_projection,
}
"""By operator; an operator that is not here has no place in a plan."""

"""``split_projection`` as one ONNX node, ``saishiki::SplitProjection``.

Inputs: x (B, T, K), w_fg and w_bg (N, K) as ``nn.Linear`` has them, mask (B, T) fp32, ``threshold`` as an fp32 scalar.
Attribute: ``foreground_at_threshold``, whether a mask that equals the threshold is foreground ("background_below").

The body multiplies every token by both weights and takes one product per token: standard operators have no product that
reads its weight by row. The kernel does half of that work; a LoRA is cheaper still where only one region has one.
"""

from typing import Any

import onnx_ir as ir

from saishiki.export.functions.local_function import DATA, FP32, Body, LocalFunction
from saishiki.export.functions.masked_split_cross_attention import is_foreground


def _both_products(body: Body) -> ir.Value:
    is_fg = body.op("Unsqueeze", is_foreground(body), body.ints(2))  # [B, T, 1]
    fg, bg = (body.op("MatMul", body["x"], body.op("Transpose", body[name], perm=(1, 0))) for name in ("w_fg", "w_bg"))
    return body.op("Where", is_fg, fg, bg)


SPLIT_PROJECTION = LocalFunction(
    "SplitProjection",
    {"x": DATA, "w_fg": DATA, "w_bg": DATA, "mask": FP32, "threshold": FP32},
    ("foreground_at_threshold",),
    _both_products,
)
FUNCTIONS = (SPLIT_PROJECTION,)


def node_of_call(call: dict[str, Any]) -> ir.Value:
    """Records the node of a call of the op, given by argument name."""
    at_threshold = int(call["selection"] == "background_below")
    inputs = [call[name] for name in SPLIT_PROJECTION.inputs]
    return SPLIT_PROJECTION.node(inputs, {"foreground_at_threshold": at_threshold})

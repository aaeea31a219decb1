"""What one node must do: operations, and bytes if each of its tensors is read or written once.

A multiply-add is two operations. Ops of ours are counted as their kernels compute them: a token meets the keys and the
weight of its own region alone. Matrix operations are those of convolutions, matrix products and attention; all
others, norms and softmax included, are vector operations, one for each function of an element, whatever it costs. Views
move nothing. A slice reads what it keeps. An operator that is not in the table is an error, never zero.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from roofline import Work

from graph_roofline.sized_graph import SizedGraph, SizedNode, SizedTensor
from saishiki.export.functions.local_function import DOMAIN

Flops = Callable[[SizedNode], tuple[int, int]]

VIEWS = frozenset({"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})
MOVES = frozenset({"Concat", "ConstantOfShape", "Expand", "Gather", "Pad", "Slice", "Split", "Tile", "Transpose"})
READ_WHAT_THEY_WRITE = frozenset({"Gather", "Slice"})

# fmt: off
_ONE_OPERATION = (
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Equal", "Erf", "Exp", "Floor", "Greater",
    "GreaterOrEqual", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
    "Reciprocal", "Relu", "Round", "Sigmoid", "Sin", "Sqrt", "Sub", "Tanh", "Where",
)
# fmt: on
ELEMENTWISE = MappingProxyType(
    dict.fromkeys(_ONE_OPERATION, 1) | {"HardSigmoid": 3, "HardSwish": 4, "Swish": 2, "Gelu": 4, "Softplus": 3}
)
"""Vector operations for each element that is written."""

NORMS = MappingProxyType(
    {
        # Sum, sum of squares and multiply-add; scale and bias.
        "GroupNormalization": 7,
        "InstanceNormalization": 7,
        "LayerNormalization": 7,
        "BatchNormalization": 2,
        "RMSNormalization": 4,
        "Softmax": 4,
        "LogSoftmax": 5,
    }
)
"""Vector operations for each element that is normalised."""


def work_of(node: SizedNode) -> Work:
    """The work of a node by itself. Raises ``ValueError`` for an operator that is not counted here."""
    if node.op in VIEWS:
        return Work(0, 0, 0, launches=0)
    flops = FLOPS.get(node.op)
    if flops is None:
        raise ValueError(
            f"{node.name}: no count for the operator {node.op}; counted are {', '.join(sorted(FLOPS.keys() | VIEWS))}; "
            "add it to benchmarks/graph_roofline/node_work.py"
        )
    matrix, vector = flops(node)
    return Work(matrix, vector, bytes_read(node) + sum(tensor.nbytes for tensor in node.outputs), launches=1)


def bytes_read(node: SizedNode) -> int:
    """The bytes of its inputs that a node needs."""
    if node.op in READ_WHAT_THEY_WRITE:
        return sum(tensor.nbytes for tensor in node.outputs)
    return sum(tensor.nbytes for tensor in node.reads)


def total(works: list[Work]) -> Work:
    """The sum of some works."""
    return Work(
        sum(work.matrix_flops for work in works),
        sum(work.vector_flops for work in works),
        sum(work.nbytes for work in works),
        sum(work.launches for work in works),
    )


def graph_works(graph: SizedGraph) -> list[Work]:
    """The work of every node by itself, in order: what a runtime that fuses nothing must do."""
    return [work_of(node) for node in graph.nodes]


def _conv(node: SizedNode) -> tuple[int, int]:
    weight, out = _input(node, 1), node.outputs[0]
    return 2 * out.elements * math.prod(weight.shape[1:]), out.elements * _has_input(node, 2)


def _transposed_conv(node: SizedNode) -> tuple[int, int]:
    x, weight, out = _input(node, 0), _input(node, 1), node.outputs[0]
    return 2 * x.elements * math.prod(weight.shape[1:]), out.elements * _has_input(node, 2)


def _matmul(node: SizedNode) -> tuple[int, int]:
    return 2 * node.outputs[0].elements * _input(node, 0).shape[-1], 0


def _gemm(node: SizedNode) -> tuple[int, int]:
    a, out = _input(node, 0), node.outputs[0]
    inner = a.shape[0] if node.attributes.get("transA", 0) else a.shape[1]
    return 2 * out.elements * inner, out.elements * _has_input(node, 2)


def _attention(node: SizedNode) -> tuple[int, int]:
    """Both products in full, also under a mask; softmax of each score, which never leaves the chip."""
    q, k, v = (_input(node, index) for index in range(3))
    heads, q_width, v_width = _heads(node, q, k, v)
    q_tokens, k_tokens = q.shape[-2], k.shape[-2]
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        raise ValueError(f"{node.name}: no count for Attention with past keys")
    scores = q.shape[0] * heads * q_tokens * k_tokens
    return 2 * scores * (q_width + v_width), 4 * scores + scores * _has_input(node, 3)


def _heads(node: SizedNode, q: SizedTensor, k: SizedTensor, v: SizedTensor) -> tuple[int, int, int]:
    """Query heads, and the widths of a head of q and of v; (B, heads, T, width), or (B, T, heads * width)."""
    if len(q.shape) == 4:
        return q.shape[1], q.shape[3], v.shape[3]
    heads = node.attributes["q_num_heads"]
    return heads, q.shape[2] // heads, v.shape[2] // node.attributes["kv_num_heads"]


def _split_attention(node: SizedNode) -> tuple[int, int]:
    """Each token over its region's half of the keys, then its scale."""
    q, k, v = (_input(node, index) for index in range(3))
    scores = q.shape[0] * node.attributes["heads"] * q.shape[1] * (k.shape[1] // 2)
    widths = (q.shape[2] + v.shape[2]) // node.attributes["heads"]
    return 2 * scores * widths, 4 * scores + node.outputs[0].elements


def _merging_attention(node: SizedNode) -> tuple[int, int]:
    """Each token over both halves, then the sum of both, each with its weight."""
    matrix, vector = _split_attention(node)
    return 2 * matrix, 2 * vector + node.outputs[0].elements


def _pool(node: SizedNode) -> tuple[int, int]:
    return 0, node.outputs[0].elements * math.prod(node.attributes["kernel_shape"])


def _of_inputs(node: SizedNode) -> tuple[int, int]:
    return 0, _input(node, 0).elements


def _resize(node: SizedNode) -> tuple[int, int]:
    mode = node.attributes.get("mode", b"nearest")
    if mode == b"nearest":
        return 0, 0
    taps = {b"linear": 2, b"cubic": 4}[mode]
    axes = sum(a != b for a, b in zip(_input(node, 0).shape, node.outputs[0].shape, strict=True))
    return 0, 2 * node.outputs[0].elements * taps**axes


def _elementwise(node: SizedNode) -> tuple[int, int]:
    # Max, Min and Sum take any number of inputs.
    operands = max(1, len(node.inputs) - 1) if node.op in {"Max", "Min"} else 1
    return 0, node.outputs[0].elements * operands * ELEMENTWISE[node.op]


def _norm(node: SizedNode) -> tuple[int, int]:
    return 0, _input(node, 0).elements * NORMS[node.op]


def _nothing(_: SizedNode) -> tuple[int, int]:
    return 0, 0


def _input(node: SizedNode, index: int) -> SizedTensor:
    tensor = node.inputs[index] if index < len(node.inputs) else None
    if tensor is None:
        raise ValueError(f"{node.name}: {node.op} without its input {index} cannot be counted")
    return tensor


def _has_input(node: SizedNode, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


FLOPS: Mapping[str, Flops] = MappingProxyType(
    {
        "Conv": _conv,
        "ConvTranspose": _transposed_conv,
        "MatMul": _matmul,
        "Gemm": _gemm,
        "Attention": _attention,
        "saishiki::MaskedSplitCrossAttention": _split_attention,
        "saishiki::MaskedSplitCrossAttentionTwoQueries": _split_attention,
        "saishiki::MaskedSplitCrossAttentionMerge": _merging_attention,
        "saishiki::MaskedSplitCrossAttentionBlend": _merging_attention,
        # One product per token; its weights are inputs 1 and 2.
        "saishiki::SplitProjection": _matmul,
        "AveragePool": _pool,
        "MaxPool": _pool,
        "GlobalAveragePool": _of_inputs,
        "GlobalMaxPool": _of_inputs,
        "ReduceMax": _of_inputs,
        "ReduceMean": _of_inputs,
        "ReduceSum": _of_inputs,
        "Resize": _resize,
        **dict.fromkeys(ELEMENTWISE, _elementwise),
        **dict.fromkeys(NORMS, _norm),
        **dict.fromkeys(MOVES, _nothing),
    }
)
"""Matrix and vector operations of every operator that is counted, but for views."""

MATRIX_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Attention"}) | frozenset(
    op for op in FLOPS if op.startswith(f"{DOMAIN}::")
)

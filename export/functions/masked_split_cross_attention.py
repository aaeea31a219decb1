"""``masked_split_cross_attention`` as one ONNX node, ``saishiki::MaskedSplitCrossAttention``.

Inputs: q (B, T, heads * D), k and v (B, S, heads * D), mask (B, T) fp32, ``fg_tokens`` as a vector of one int64, then
the op's threshold and scales as fp32 scalars, which a graph may also make inputs of its own. Attributes: ``heads``, and
for a hard selection ``foreground_at_threshold``, whether a mask that equals the threshold is foreground
("background_below").

| operator | for | body |
|---|---|---|
| ``MaskedSplitCrossAttention`` | hard selection, nothing merged | one ``Attention`` with a 0/-inf bias per region |
| ``MaskedSplitCrossAttentionTwoQueries`` | the same with ``q_bg`` | the same, of the query of each token's own region |
| ``MaskedSplitCrossAttentionMerge`` | hard selection, ``merge_scale`` > 0 | two passes of MatMul, Softmax, MatMul |
| ``MaskedSplitCrossAttentionBlend`` | "blend" | two passes |

TensorRT-RTX 1.7 fuses all of them. It computes a bias once for all layers that share mask and context length. The two
passes are not two ``Attention``: it crashes where those share a tensor.

The mask is compared in fp32 whatever the dtype of the rest: rounded to fp16, tokens near the threshold change sides.
Scales and the sum of both regions are fp32 too, in the one kernel that TensorRT-RTX runs after the attention.

A row whose context is zero (classifier-free guidance) needs nothing special: its softmax is uniform, and what it weighs
is 0. So ``kv_index``, which spares that work on a GPU of ours, is refused.
"""

from typing import Any

import onnx_ir as ir
from onnxscript import opset18

from saishiki.export.functions.local_function import DATA, FP32, INT64, Body, LocalFunction

NAME = "MaskedSplitCrossAttention"
_TO_THE_END = 2**63 - 1
_INPUTS = {"q": DATA, "k": DATA, "v": DATA, "mask": FP32, "fg_tokens": INT64}
_SCALES = {"fg_scale": FP32, "bg_scale": FP32, "reference_scale": FP32}
_MERGE = {"merge_scale": FP32, "q_bg": DATA}


def _single_pass(body: Body) -> ir.Value:
    is_fg = is_foreground(body)  # [B, T]
    q = body["q"]
    if "q_bg" in body:
        q = body.op("Where", body.op("Unsqueeze", is_fg, body.ints(2)), q, body["q_bg"])
    out = body.op("Attention", q, body["k"], body["v"], _bias(body, is_fg), **_heads())
    scale = body.op("Where", is_fg, body["fg_scale"], body["bg_scale"])
    return _in_dtype_of_q(body, _weighted(body, out, body.op("Mul", scale, body["reference_scale"])))


def _two_passes(body: Body) -> ir.Value:
    # What a token takes of the foreground: all or nothing, or a share that may leave [0, 1].
    share = body.fp32(is_foreground(body)) if "threshold" in body else body["mask"]  # [B, T]
    fg = body.op("Mul", share, body.op("Sub", body.number(1.0), body["merge_scale"]))
    bg = body.op("Sub", body.number(1.0), fg)
    fg_scale, bg_scale = (body.op("Mul", body[name], body["reference_scale"]) for name in ("fg_scale", "bg_scale"))
    start, middle, end = body.ints(0), body["fg_tokens"], body.ints(_TO_THE_END)
    from_fg = _weighted(body, _attention(body, "q", start, middle), body.op("Mul", fg, fg_scale))
    from_bg = _weighted(body, _attention(body, "q_bg", middle, end), body.op("Mul", bg, bg_scale))
    return _in_dtype_of_q(body, body.op("Add", from_fg, from_bg))


def is_foreground(body: Body) -> ir.Value:
    """[B, T]: above the threshold, or not below it."""
    above = body.op("Greater", body["mask"], body["threshold"])
    not_below = body.op("Not", body.op("Less", body["mask"], body["threshold"]))
    rule = body.op("Cast", body.int_attribute("foreground_at_threshold"), to=ir.DataType.BOOL)
    return body.op("Or", above, body.op("And", not_below, rule))


def _bias(body: Body, is_fg: ir.Value) -> ir.Value:
    """[B, 1, T, S]: 0 where the token and the key are of one region, else -inf."""
    keys = body.op("Squeeze", body.op("Shape", body["k"], start=1, end=2))
    zero, one = (body.op("Constant", value_int=value) for value in (0, 1))
    is_fg_key = body.op("Less", body.op("Range", zero, keys, one), body["fg_tokens"])  # [S]
    is_other = body.op("Xor", body.op("Unsqueeze", is_fg, body.ints(1, 3)), is_fg_key)
    closed, open_ = (body.op("CastLike", body.number(value), body["q"]) for value in (float("-inf"), 0.0))
    return body.op("Where", is_other, closed, open_)


def _attention(body: Body, queries: str, first: ir.Value, last: ir.Value) -> ir.Value:
    """[B, T, heads * D]: of all tokens over the keys from first to last - 1. The queries are scaled, not the scores."""
    k, v = (body.op("Slice", body[name], first, last, body.ints(1)) for name in ("k", "v"))
    q = _split_heads(body, body[queries], perm=(0, 2, 1, 3))  # [B, heads, T, D]
    width = body.op("Cast", body.op("Shape", q, start=3, end=4), to=ir.DataType.FLOAT)
    scale = body.op("CastLike", body.op("Reciprocal", body.op("Sqrt", width)), q)
    scores = body.op("MatMul", body.op("Mul", q, scale), _split_heads(body, k, perm=(0, 2, 3, 1)))  # [B, heads, T, S]
    out = body.op("MatMul", body.op("Softmax", scores, axis=-1), _split_heads(body, v, perm=(0, 2, 1, 3)))
    return body.op("Reshape", body.op("Transpose", out, perm=(0, 2, 1, 3)), body.ints(0, 0, -1))


def _split_heads(body: Body, tokens: ir.Value, *, perm: tuple[int, ...]) -> ir.Value:
    shape = body.op("Concat", body.ints(0, 0), body.int_attribute("heads"), body.ints(-1), axis=0)
    return body.op("Transpose", body.op("Reshape", tokens, shape), perm=perm)


def _weighted(body: Body, tokens: ir.Value, weight: ir.Value) -> ir.Value:
    """[B, T, heads * D] fp32, each token times its weight."""
    return body.op("Mul", body.fp32(tokens), body.op("Unsqueeze", weight, body.ints(2)))


def _in_dtype_of_q(body: Body, tokens: ir.Value) -> ir.Value:
    return body.op("CastLike", tokens, body["q"])


def _heads() -> dict[str, ir.Attr]:
    names = ("q_num_heads", "kv_num_heads")
    return {name: ir.RefAttr(name, "heads", ir.AttributeType.INT) for name in names}


_HARD = ("heads", "foreground_at_threshold")
SINGLE = LocalFunction(NAME, _INPUTS | {"threshold": FP32} | _SCALES, _HARD, _single_pass)
TWO_QUERIES = LocalFunction(f"{NAME}TwoQueries", {**SINGLE.inputs, "q_bg": DATA}, _HARD, _single_pass)
MERGE = LocalFunction(f"{NAME}Merge", {**SINGLE.inputs, **_MERGE}, _HARD, _two_passes)
BLEND = LocalFunction(f"{NAME}Blend", _INPUTS | _SCALES | _MERGE, ("heads",), _two_passes)
FUNCTIONS = (SINGLE, TWO_QUERIES, MERGE, BLEND)


def form_of(*, selection: str, merge_scale: float, has_q_bg: bool) -> LocalFunction:
    """The form that a call of the op becomes."""
    if selection == "blend":
        return BLEND
    if merge_scale:
        return MERGE
    return TWO_QUERIES if has_q_bg else SINGLE


def node_of_call(call: dict[str, Any]) -> ir.Value:
    """Records the node of a call of the op, given by argument name. Raises ``ValueError`` where it has a kv_index."""
    if call.get("kv_index") is not None:
        raise ValueError(
            "masked_split_cross_attention: expected no kv_index in an exported graph, where it would save nothing; "
            "repeat k and v per batch row, with zeros for an empty context"
        )
    form = form_of(selection=call["selection"], merge_scale=call["merge_scale"], has_q_bg=call.get("q_bg") is not None)
    return _node(form, call)


def node_of_merging_call(call: dict[str, Any]) -> ir.Value:
    """The same of a call whose merge share is a tensor, an input of the graph; all scales are 1."""
    return _node(MERGE, call | dict.fromkeys(_SCALES, 1.0))


def _node(form: LocalFunction, call: dict[str, Any]) -> ir.Value:
    values = call | {"fg_tokens": _fg_tokens(call), "q_bg": call["q"] if call.get("q_bg") is None else call["q_bg"]}
    attributes = {"heads": call["heads"], "foreground_at_threshold": int(call["selection"] == "background_below")}
    inputs = [values[name] for name in form.inputs]
    return form.node(inputs, {name: attributes[name] for name in form.attributes})


def _fg_tokens(call: dict[str, Any]) -> Any:
    tokens: Any = call["fg_tokens"]
    one: Any = [1]
    return [tokens] if isinstance(tokens, int) else opset18.Reshape(tokens, one)

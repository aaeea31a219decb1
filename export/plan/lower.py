"""From an ONNX graph to a plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from torch import nn

from saishiki.export.half_graph import half_graph
from saishiki.export.onnx_graph import trace
from saishiki.export.passes import PASSES
from saishiki.export.plan.computing import convolution
from saishiki.export.plan.dims import Dim
from saishiki.export.plan.draft import Draft, LoweringError, StoredWeight
from saishiki.export.plan.join_products import join_products
from saishiki.export.plan.nodes import LOWERINGS
from saishiki.export.plan.operands import write
from saishiki.export.plan.values import Cast, Contraction, Tensor
from saishiki.export.plan.view import dense
from saishiki.runtime.manifest import Precision
from saishiki.runtime.plan import Plan
from saishiki.runtime.plan.plan import PLAN_VERSION, check_plan
from saishiki.runtime.signature import Array, Signature, Sizes, TensorSpec

DTYPES: Mapping[Precision, str] = {"fp32": "float32", "fp16": "float16"}
BORDER_FILTERS = 8
"""A last convolution writes fp32 images as they are where it has at most so many filters."""


@dataclass(frozen=True)
class LoweredPlan:
    """A plan and its weights, which are read from the graph's file when they are stored."""

    plan: Plan
    weights: Mapping[str, StoredWeight]

    def read_weights(self) -> dict[str, Array]:
        """All of them, in host memory."""
        return {name: stored.read() for name, stored in self.weights.items()}


def lower_graph(path: Path, signature: Signature, precision: Precision) -> LoweredPlan:
    """The plan of a written graph.

    Raises ``LoweringError`` naming the node that has no place in a plan.
    """
    return _lower_model(ir.load(path), signature, precision)


def lower_module(
    module: nn.Module, signature: Signature, traced_at: Sizes, precision: Precision = "fp16"
) -> LoweredPlan:
    """The plan of a PyTorch module, as an export makes it where nothing has to stay in fp32.

    Args:
        traced_at: as ``sizes`` of :func:`saishiki.export.onnx_graph.trace`.
    """
    model = trace(module, signature, traced_at)
    model = half_graph(model, keep_fp32=()) if precision == "fp16" else model
    for rewrite in PASSES:
        rewrite(model, signature)
    return _lower_model(model, signature, precision)


def _lower_model(model: ir.Model, signature: Signature, precision: Precision) -> LoweredPlan:
    draft = Draft(signature, DTYPES[precision])
    for spec, value in zip(signature.inputs, model.graph.inputs, strict=True):
        draft.values[value] = dense(spec.name, spec.dtype, tuple(map(Dim.of, spec.dims)))
    for node in model.graph:
        _lower(node, draft)
    for spec, value in zip(signature.outputs, model.graph.outputs, strict=True):
        _write_output(draft, spec, draft.tensor(value))
    join_products(draft)
    draft.store_hoisted_biases()
    return _finished(draft)


def _lower(node: ir.Node, draft: Draft) -> None:
    operator = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    lower = LOWERINGS.get(operator)
    if lower is None:
        raise LoweringError(
            f"the node {node.name} ({operator}) has no place in a plan, which knows {', '.join(LOWERINGS)}; "
            "leave the target cuda out"
        )
    try:
        lower(node, draft)
    except LoweringError as error:
        raise LoweringError(f"the node {node.name} ({node.op_type}): {error}; leave the target cuda out") from error


def _write_output(draft: Draft, spec: TensorSpec, value: Tensor) -> None:
    inner = value.x if isinstance(value, Cast) and value.uses == 1 and value not in draft.made else value
    if _is_border(draft, spec, inner):
        assert isinstance(inner, Contraction)
        convolution(draft, inner, image=spec.name)
        return
    dims = tuple(map(Dim.of, spec.dims))
    if value.shape != dims:
        raise LoweringError(f"the graph's {spec.name} is {[str(dim) for dim in value.shape]}, the signature's {spec}")
    write(draft, value, dense(spec.name, spec.dtype, dims))


def _is_border(draft: Draft, spec: TensorSpec, value: Tensor) -> bool:
    """Whether a convolution can write an output itself."""
    return (
        isinstance(value, Contraction)
        and value.kind == "convolution"
        and value.uses == 1
        and value.residual is None
        and value not in draft.made
        and spec.dtype == "float32"
        and value.shape[1].number <= BORDER_FILTERS
    )


def _finished(draft: Draft) -> LoweredPlan:
    used = {name for op in draft.ops for name in (*op.reads(), *op.writes())}
    hoisted = {name: vector for name, vector in draft.hoisted.items() if name in used}
    used |= {vector.bias for vector in hoisted.values()}
    weights = {name: weight for name, weight in sorted(draft.weights.items()) if name in used}
    plan = Plan(
        version=PLAN_VERSION,
        dtype=draft.dtype,
        buffers={name: buffer for name, buffer in draft.buffers.items() if name in used},
        hoisted=hoisted,
        weights={name: weight.spec for name, weight in weights.items()},
        ops=tuple(draft.ops),
    )
    check_plan(plan, draft.signature, source="the plan")
    return LoweredPlan(plan, weights)

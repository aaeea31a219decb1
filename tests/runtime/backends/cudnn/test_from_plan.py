"""A plan's operations as cuDNN's: computed from its graph at the plan's places, against the plan's own references."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from saishiki.runtime.backends.cudnn.attention import Attention
from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.from_plan import addresses_from_op, operation_from_op
from saishiki.runtime.backends.cudnn.matmul import Matmul
from saishiki.runtime.backends.cudnn.planner import Planner
from saishiki.runtime.plan import ops
from saishiki.runtime.plan.extents import Extent, Extents, Strided, Tensors
from tests.runtime.backends.cudnn.host_memory import aligned, normal
from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend

SHAPES = {
    "x": (1, 6, 5, 16),
    "x2": (2, 6, 5, 16),
    "w": (24, 3, 3, 16),
    "bias": (24,),
    "hoisted": (1, 72),
    "hoisted2": (2, 72),
    "residual": (1, 6, 5, 24),
    "y": (1, 6, 5, 24),
    "y2": (2, 6, 5, 24),
    "narrow": (1, 6, 5, 8),
    "rows": (7, 16),
    "linear": (24, 16),
    "added": (7, 24),
    "out": (7, 24),
    "qkv": (2, 5, 3, 2, 8),
    "keys": (2, 2, 6, 8),
    "attended": (2, 5, 16),
    "zeros": (24,),
    "statistics": (1, 4, 2),
}
AROUND = (1, 1, 1, 1)


def rows(buffer: str, row: int = 0, offset: int = 0) -> Strided:
    """All rows of a matrix, or with a row's length given, those of a part."""
    count, width = SHAPES[buffer]
    return Strided(buffer, (str(count), str(width)), (str(row or width), "1"), str(offset))


def heads(part: int, batch: int = 240, head: int = 8, element: int = 1) -> Strided:
    return Strided("qkv", ("2", "2", "5", "8"), (str(batch), str(head), "48", str(element)), str(16 * part))


KEYS = Strided("keys", ("2", "2", "6", "8"), ("96", "48", "8", "1"))
PLAIN = ops.Convolution(x=("x",), weight="w", bias="bias", out="y", padding=AROUND)
ATTENTION = ops.Attention(q=heads(0), k=heads(1), v=heads(2), out="attended", scale=0.4)

TAKEN: dict[str, tuple[ops.AnyOp, Any]] = {
    "convolution": (PLAIN, Convolution(1, 6, 5, 16, 24, (3, 3), 1, AROUND)),
    "residual and a vector of the step": (
        ops.Convolution(
            x=("x",), weight="w", bias="hoisted", bias_offset=24, out="y", residual="residual", padding=AROUND
        ),
        Convolution(1, 6, 5, 16, 24, (3, 3), 1, AROUND, residual=True),
    ),
    "batch": (
        ops.Convolution(x=("x2",), weight="w", bias="bias", out="y2", padding=AROUND),
        Convolution(2, 6, 5, 16, 24, (3, 3), 1, AROUND),
    ),
    "matmul": (ops.Matmul(x=rows("rows"), weight="linear", out=rows("out"), bias="bias"), Matmul(7, 16, 24)),
    "matmul without bias": (
        ops.Matmul(x=rows("rows"), weight="linear", out=rows("out"), residual=rows("added")),
        Matmul(7, 16, 24, residual=True),
    ),
    "attention": (
        ATTENTION,
        Attention(2, 2, 5, 5, 8, 0.4, query_strides=(240, 8, 48), key_strides=(240, 8, 48), value_strides=(240, 8, 48)),
    ),
    "attention over keys per head": (
        ops.Attention(q=heads(0), k=KEYS, v=KEYS, out="attended", scale=0.4),
        Attention(2, 2, 5, 6, 8, 0.4, query_strides=(240, 8, 48), key_strides=(96, 48, 8), value_strides=(96, 48, 8)),
    ),
}


def extents_of(**dtypes: str) -> Extents:
    return Extents({}, {name: Extent(shape, dtypes.get(name, "float16")) for name, shape in SHAPES.items()})


def arrays() -> dict[str, np.ndarray]:
    """Memory for every tensor, all random but what an operation writes."""
    memory = {name: aligned(shape) for name, shape in SHAPES.items()}
    for name in memory.keys() - {"y", "y2", "out", "attended", "zeros"}:
        memory[name][...] = normal(*SHAPES[name], seed=sum(map(ord, name)))
    memory["zeros"][...] = 0
    return memory


def computed_by_cudnn(op: ops.AnyOp, memory: Mapping[str, np.ndarray]) -> None:
    operation = operation_from_op(op, extents_of())
    assert operation is not None
    addresses = addresses_from_op(op, extents_of(), lambda name: memory[name].ctypes.data, zeros="zeros")
    Planner(PlayedFrontend().cudnn, 90).first_plan(operation).execute(0, addresses)


@pytest.mark.parametrize(("op", "expected"), TAKEN.values(), ids=TAKEN)
def test_operation_is_what_the_plan_means(op: ops.AnyOp, expected: Any) -> None:
    assert operation_from_op(op, extents_of()) == expected
    own, theirs = arrays(), arrays()
    op.compute(Tensors({}, own))
    computed_by_cudnn(op, theirs)
    (out,) = op.writes()
    np.testing.assert_allclose(theirs[out].astype(np.float32), own[out].astype(np.float32), rtol=2e-3, atol=2e-3)


def test_a_swapped_operand_is_seen() -> None:
    own, theirs = arrays(), arrays()
    ATTENTION.compute(Tensors({}, own))
    computed_by_cudnn(ops.Attention(q=heads(0), k=heads(2), v=heads(1), out="attended", scale=0.4), theirs)
    assert np.abs(own["attended"] - theirs["attended"]).max() > 0.1


VECTORS = ops.Convolution(x=("x2",), weight="w", bias="hoisted2", out="y2", padding=AROUND)
LEFT_TO_OTHERS: dict[str, ops.AnyOp] = {
    "a vector per image": VECTORS,
    "images of the interface": ops.Convolution(x=("x",), weight="w", bias="bias", out="y", from_images=True),
    "an image of the interface": ops.Convolution(x=("x",), weight="w", bias="bias", out="y", to_image=True),
    "a norm in front": ops.Convolution(
        x=("x",), weight="w", bias="bias", out="y", norm=ops.InputNorm("statistics", "bias", "bias", True)
    ),
    "a vector at 8 bytes": ops.Convolution(x=("x",), weight="w", bias="hoisted", bias_offset=4, out="y"),
    "fewer channels than the filters": ops.Convolution(x=("narrow",), weight="w", bias="bias", out="y"),
    "rows with gaps": ops.Matmul(x=rows("rows", row=32), weight="linear", out=rows("out"), bias="bias"),
    "rows at 2 bytes": ops.Matmul(x=rows("rows", offset=1), weight="linear", out=rows("out"), bias="bias"),
    "a result with gaps": ops.Matmul(x=rows("rows"), weight="linear", out=rows("out", row=48), bias="bias"),
    "keys that repeat": ops.Attention(q=heads(0), k=heads(1, batch=0), v=heads(2), out="attended", scale=0.4),
    "tokens innermost": ops.Attention(q=heads(0, element=48), k=heads(1), v=heads(2), out="attended", scale=0.4),
    "a pool": ops.Pool(x="x", out="narrow"),
}


@pytest.mark.parametrize("op", LEFT_TO_OTHERS.values(), ids=LEFT_TO_OTHERS)
def test_what_cudnn_does_not_compute(op: ops.AnyOp) -> None:
    assert operation_from_op(op, extents_of()) is None


def test_equal_vectors_stand_for_one() -> None:
    operation = operation_from_op(VECTORS, extents_of(), equal_vectors={"hoisted2"})
    assert operation == Convolution(2, 6, 5, 16, 24, (3, 3), 1, AROUND)
    assert operation_from_op(VECTORS, extents_of(), equal_vectors={"hoisted"}) is None


@pytest.mark.parametrize("tensor", ["x", "w", "bias", "y"])
def test_other_precisions_are_left_to_others(tensor: str) -> None:
    assert operation_from_op(PLAIN, extents_of(**{tensor: "float32"})) is None


def test_addresses_of_what_cudnn_never_computes() -> None:
    with pytest.raises(TypeError, match="cuDNN computes no Pool"):
        addresses_from_op(ops.Pool(x="x", out="narrow"), extents_of(), lambda name: 0, zeros="zeros")

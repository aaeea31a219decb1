from functools import partial

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saishiki.export.plan.draft import Draft
from saishiki.export.plan.join_products import _Part, _stacked, _within
from saishiki.runtime.backends.cudnn.from_plan import operation_from_op
from saishiki.runtime.plan import interpret
from saishiki.runtime.plan.extents import Strided
from saishiki.runtime.plan.ops import Attention, Matmul
from saishiki.runtime.signature import Signature
from tests.export.plan.conftest import RUN

TOKENS = ("batch", "tokens", "32")
CONTEXT = ("batch", "6", "24")
EXACT = 2e-6


def attend(q, k, v):
    q, k, v = (x.reshape(*x.shape[:2], 2, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def products_of(lowered):
    """What is multiplied, the rows of the weight, and whether there is a bias, in order."""
    plan = lowered.lowered.plan
    ops = (op for op in plan.ops if isinstance(op, Matmul))
    return [(op.x.buffer, plan.weights[op.weight].shape[0], op.bias is not None) for op in ops]


class Attending(nn.Module):
    """Self-attention with biases and values of another width, then cross-attention without biases."""

    def __init__(self, biased: bool = True) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(32, 32), nn.Linear(32, 32)
        self.v = nn.Linear(32, 48, bias=biased)
        self.q2, self.k2, self.v2 = nn.Linear(48, 16, False), nn.Linear(24, 16, False), nn.Linear(24, 16, False)

    def forward(self, x, context):
        y = attend(self.q(x), self.k(x), self.v(x))
        return attend(self.q2(y), self.k2(context), self.v2(context))


def lowered_attending(lower, module, **how):
    return lower(module, {"x": TOKENS, "context": CONTEXT}, {"y": ("batch", "tokens", "16")}, **how)


@pytest.fixture(scope="module")
def attending(lower):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lowered_attending(lower, Attending())


def test_q_k_and_v_are_one_product_and_k_and_v_of_a_context_another(attending):
    own, other = [op for op in attending.lowered.plan.ops if isinstance(op, Attention)]
    assert products_of(attending) == [("x", 112, True), (own.out, 16, False), ("context", 32, False)]
    assert {own.q.buffer} == {own.k.buffer, own.v.buffer}
    assert [part.offset for part in (own.q, own.k, own.v)] == ["0", "32", "64"]
    assert (own.v.shape, own.v.strides) == (("batch", "2", "tokens", "24"), ("112*tokens", "24", "112", "1"))
    assert (other.k.buffer, other.k.offset, other.v.offset) == (other.v.buffer, "0", "16")
    assert 0 < attending.error() < EXACT
    stored = sum(weight.read().size for weight in attending.lowered.weights.values())
    assert stored == sum(parameter.numel() for parameter in attending.module.parameters()), "none is stored twice"


def test_wrong_places_are_seen(attending):
    plan, weights = attending.lowered.plan, {name: each.read() for name, each in attending.lowered.weights.items()}
    inputs = attending.draw()
    want = attending.run(inputs)["y"]
    (place,) = (i for i, op in enumerate(plan.ops) if isinstance(op, Attention) and op.v.offset == "64")
    for offset in ("32", "56"):
        moved = msgspec.structs.replace(plan.ops[place], k=msgspec.structs.replace(plan.ops[place].k, offset=offset))
        ops = (*plan.ops[:place], moved, *plan.ops[place + 1 :])
        got = interpret(msgspec.structs.replace(plan, ops=ops), attending.signature, weights, inputs)["y"]
        assert (np.abs(got - want).max() < EXACT) == (offset == "32")


def test_products_with_and_without_bias_stay_apart(lower):
    lowered = lowered_attending(lower, Attending(biased=False))
    assert products_of(lowered)[:2] == [("x", 64, True), ("x", 48, False)]
    assert lowered.error() < EXACT


def test_cudnn_takes_joined_products_and_their_attention(lower):
    module = Attending()
    module.v, module.q2 = nn.Linear(32, 32), nn.Linear(32, 16, False)
    lowered = lowered_attending(lower, module, half=True)
    plan = lowered.lowered.plan
    extents = plan.extents(lowered.signature, {"batch": RUN["batch"], "tokens": RUN["tokens"]})
    taken = [operation_from_op(op, extents) for op in plan.ops if isinstance(op, Attention | Matmul)]
    # The last attention writes into the interface.
    assert [type(operation).__name__ for operation in taken] == ["Matmul", "Attention", "Matmul", "Matmul", "Attention"]


class Twice(nn.Module):
    """The layers of one attention over two tensors, and of its queries' layer over a third."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32, False) for _ in range(4))

    def forward(self, x, z, alone):
        x, z = (attend(self.q(each), self.k(each), self.v(each)) for each in (x, z))
        return self.out(attend(self.q(alone), x, z))


def test_a_weight_that_is_also_used_alone_is_stored_once(lower):
    torch.manual_seed(1)
    lowered = lower(Twice(), dict.fromkeys(("x", "z", "alone"), TOKENS), {"y": TOKENS})
    products = products_of(lowered)
    assert [width for _, width, _ in products] == [32, 64, 32, 64, 32, 32]
    shapes = sorted(spec.shape for spec in lowered.lowered.plan.weights.values())
    assert shapes == [(32, 32), (32, 32), (64, 32)], "q, the output, and k and v, which both tensors share"
    assert lowered.error() < EXACT


class Read(nn.Module):
    """Values that are also added to the result."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32, False) for _ in range(3))

    def forward(self, x):
        v = self.v(x)
        return attend(self.q(x), self.k(x), v) + v


def test_a_result_that_others_read_stays_by_itself(lower):
    torch.manual_seed(2)
    lowered = lower(Read(), {"x": TOKENS}, {"y": TOKENS})
    assert sorted(width for _, width, _ in products_of(lowered)) == [32, 64]
    assert lowered.error() < EXACT


def test_stacks_that_begin_alike_are_not_the_same():
    """As where q has the bias of other layers, whose k have others."""
    draft = Draft(Signature((), (), {}), "float32")
    for number, name in enumerate("abc"):
        draft.store(name, partial(np.full, (8,), number, np.float32), shape=(8,))
    stacks = [draft.weights[_stacked(draft, ["a", other])].read() for other in "bc"]
    np.testing.assert_array_equal(stacks, [[0.0] * 8 + [1.0] * 8, [0.0] * 8 + [2.0] * 8])


PART = _Part("joined", 40, 32, 104)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        (("batch", "2", "tokens", "16"), ("32*tokens", "16", "32", "1"), "0", (("104*tokens", "16", "104", "1"), "40")),
        (("batch", "2", "tokens", "8"), ("0", "16", "64", "1"), "72", (("0", "16", "208", "1"), str(2 * 104 + 40 + 8))),
        (("batch", "2", "height*width/64", "16"), ("height*width/2", "16", "32", "1"), "0", None),
        (("batch", "1", "tokens", "32"), ("32*tokens", "0", "32", "1"), "8", "refused"),
        (("batch", "2", "16", "tokens"), ("32*tokens", "16*tokens", "tokens", "1"), "0", "refused"),
        (("batch", "2", "tokens", "16"), ("32*tokens", "16", "32", "1"), "tokens", "refused"),
    ],
    ids=["heads", "parts of heads", "sizes", "past the end", "tokens innermost", "symbolic offset"],
)
def test_operands_in_longer_rows(shape, strides, offset, expected):
    found = _within(Strided("q", shape, strides, offset), PART)
    if expected == "refused":
        assert found is None
        return
    strides, offset = expected or (("13*height*width/8", "16", "104", "1"), "40")
    assert found == Strided("joined", shape, strides, offset)

import numpy as np
import pytest
from msgspec.structs import replace

from saishiki.runtime.plan import Buffer, interpret, lay_out
from saishiki.runtime.plan.arena import ALIGNMENT_BYTES
from saishiki.runtime.plan.fold_norms import fold_norms
from saishiki.runtime.plan.ops import Convolution, InputNorm, NormApply, Pool
from saishiki.runtime.plan.plan import check_plan, json_from_plan, plan_from_json
from tests.runtime.plan import small_network
from tests.runtime.plan.small_network import FULL, SIGNATURE, inputs

PLAN = small_network.plan("float16")
APPLY, READER = 2, 3
NORM = InputNorm("statistics", "norm.weight", "norm.offset", True)


def test_a_norm_that_one_convolution_reads_is_folded():
    folded = fold_norms(PLAN)
    check_plan(folded, SIGNATURE, source="the plan")
    kinds = [type(op) for op in PLAN.ops]
    assert [type(op) for op in folded.ops] == kinds[:APPLY] + kinds[READER:]
    assert folded.ops[APPLY] == replace(PLAN.ops[READER], x=("first_out",), norm=NORM)
    # The other norm puts a concat together, in front of an image of the interface.
    assert any(isinstance(op, NormApply) for op in folded.ops)
    assert fold_norms(folded) == folded


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_folded_plan_computes_the_same_numbers(dtype):
    plan, weights, given = small_network.plan(dtype), small_network.weights(dtype), inputs()
    results = [interpret(each, SIGNATURE, weights, given)["result"] for each in (plan, fold_norms(plan))]
    np.testing.assert_array_equal(*results)


def test_the_normalised_pictures_take_no_memory():
    folded = fold_norms(PLAN)
    assert PLAN.buffers.keys() - folded.buffers.keys() == {"norm_out"}
    ops = [replace(plan, ops=plan.ops[:-7]) for plan in (PLAN, folded)]
    sizes = {"batch": 1, "height": 16, "width": 16}
    arenas = [lay_out(plan, plan.extents(SIGNATURE, sizes)) for plan in ops]
    # Three pictures at once become two, beside which the statistics are still alive.
    assert arenas[0].nbytes - arenas[1].nbytes == 16 * 16 * 8 * 2 - ALIGNMENT_BYTES


def test_a_folded_plan_is_read_back():
    folded = fold_norms(PLAN)
    assert plan_from_json(json_from_plan(folded), source="a plan", signature=SIGNATURE) == folded


def changed(place, **fields):
    return replace(PLAN, ops=(*PLAN.ops[:place], replace(PLAN.ops[place], **fields), *PLAN.ops[place + 1 :]))


def with_op(place, op):
    return replace(PLAN, ops=(*PLAN.ops[:place], op, *PLAN.ops[place:]))


POOL = Pool("norm_out", "pooled")
STAYS = {
    "u is wanted by itself": changed(APPLY, dense="u"),
    "a residual": changed(APPLY, input=replace(PLAN.ops[APPLY].input, residual="residual_out")),
    "a concat": changed(APPLY, input=replace(PLAN.ops[APPLY].input, concat="residual_out")),
    "upsampled": changed(APPLY, input=replace(PLAN.ops[APPLY].input, upsample=True)),
    "another reader": with_op(READER, POOL),
    "a later reader": with_op(READER + 1, POOL),
    "no reader": replace(PLAN, ops=PLAN.ops[: APPLY + 1]),
    "not a convolution's": replace(PLAN, ops=(*PLAN.ops[: APPLY + 1], POOL)),
    "an image behind it": changed(READER, to_image=True),
    "its own residual": changed(READER, residual="norm_out"),
    "tokens": replace(PLAN, buffers=PLAN.buffers | {"first_out": Buffer("float16", ("batch", "height*width", "8"))}),
    "new pictures in between": with_op(READER, Pool("image", "first_out")),
    "new statistics in between": with_op(READER, PLAN.ops[1]),
    "pictures of the interface": replace(
        PLAN, buffers={name: buffer for name, buffer in PLAN.buffers.items() if name != "first_out"}
    ),
}


@pytest.mark.parametrize("plan", STAYS.values(), ids=STAYS)
def test_norms_that_stay(plan):
    assert fold_norms(plan) == plan


def test_two_norms_of_the_same_pictures_are_each_folded():
    second = replace(PLAN.ops[APPLY], out="other", silu=False)
    reader = replace(PLAN.ops[READER], x=("other",), residual=None, out="more")
    buffers = PLAN.buffers | dict.fromkeys(("other", "more"), Buffer("float16", FULL))
    plan = replace(PLAN, buffers=buffers, ops=(*PLAN.ops[:READER], second, PLAN.ops[READER], reader))
    norms = [op.norm for op in fold_norms(plan).ops if isinstance(op, Convolution)]
    assert norms == [None, NORM, replace(NORM, silu=False)]

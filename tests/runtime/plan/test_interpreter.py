import itertools
from dataclasses import replace as with_fields

import numpy as np
import pytest
from msgspec.structs import replace

from saishiki.runtime.plan import Plan, interpret, lay_out
from saishiki.runtime.plan.arena import lifetimes
from saishiki.runtime.plan.extents import Strided
from saishiki.runtime.plan.plan import check_plan
from tests.runtime.plan import small_network
from tests.runtime.plan.small_network import FULL, HALVES, OUT_NORM, SIGNATURE, WEIGHTS, inputs, rows, tokens

SIZES = {"batch": 2, "height": 6, "width": 10}
# The largest error of results of standard deviation 0.8: fp32's, and of activations that are rounded to fp16.
BUDGETS = {"float32": 1e-5, "float16": 2.0**-8}
PLACES = {name: place for place, name in enumerate(op.writes()[0] for op in small_network.plan("float16").ops)}
TRANSPOSED = Strided("down_out", ("batch", HALVES, "8"), (f"8*{HALVES}", "1", HALVES))

each_dtype = pytest.mark.parametrize("dtype", BUDGETS)


def changed(plan: Plan, result: str, **fields: object) -> Plan:
    """The plan with other fields of the operation that writes a tensor."""
    ops = list(plan.ops)
    ops[PLACES[result]] = replace(ops[PLACES[result]], **fields)
    return replace(plan, ops=tuple(ops))


def error(plan: Plan, dtype: str, **options) -> float:
    """The largest error; NaN where there is one in the result."""
    weights, given = small_network.weights(dtype), inputs()
    result = interpret(plan, SIGNATURE, weights, given, **options)["result"]
    return float(np.abs(result - small_network.truth(weights, given)).max())


@each_dtype
@pytest.mark.parametrize(("batch", "height", "width"), [(2, 6, 10), (1, 2, 2), (3, 10, 6)])
def test_interpret(dtype, batch, height, width):
    weights, given = small_network.weights(dtype), inputs(batch, height, width)
    check_plan(small_network.plan(dtype), SIGNATURE, source="the plan")
    outputs = interpret(small_network.plan(dtype), SIGNATURE, weights, given)
    truth = small_network.truth(weights, given)
    assert outputs.keys() == {"result"}
    assert outputs["result"].dtype == np.float32
    np.testing.assert_allclose(outputs["result"], truth, rtol=0, atol=BUDGETS[dtype])
    assert truth.std() > 0.4


def test_activations_are_rounded():
    assert error(small_network.plan("float16"), "float16") > 1e-4


def test_two_runs_are_equal_and_leave_the_inputs():
    plan, weights, given = small_network.plan("float16"), small_network.weights("float16"), inputs()
    before = {name: array.copy() for name, array in (weights | given).items()}
    first, second = (interpret(plan, SIGNATURE, weights, given)["result"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for name, array in before.items():
        np.testing.assert_array_equal((weights | given)[name], array)


@pytest.mark.parametrize(
    ("result", "fields"),
    [
        # a wrong stride
        ("attended", {"q": TRANSPOSED}),
        ("attended", {"k": replace(tokens("keys", "6"), strides=("0", "8", "1"))}),
        ("linear_out", {"x": replace(rows("projected"), strides=("0", "1"))}),
        ("linear_out", {"out": Strided("linear_out", (f"batch*{HALVES}", "8"), ("1", f"batch*{HALVES}"))}),
        # a wrong place
        ("first_out", {"bias_offset": 11}),
        ("down_out", {"padding": (1, 1, 0, 0)}),
        ("projected", {"x": replace(tokens("attended"), offset="-8 + 8", strides=("0", "8", "1"))}),
        # a dropped residual, or another
        ("residual_out", {"residual": None}),
        ("residual_out", {"residual": "norm_out"}),
        ("linear_out", {"residual": None}),
        ("linear_out", {"residual": rows("attended")}),
        # a dropped bias, or another weight
        ("linear_out", {"bias": None}),
        ("result", {"bias": "down.bias"}),
        ("residual_out", {"weight": "down"}),
        # swapped foreground and background
        ("projected", {"foreground_weight": "background", "background_weight": "foreground"}),
        ("projected", {"foreground_at_threshold": True}),
        ("attended", {"foreground_at_threshold": True}),
        ("attended", {"foreground_tokens": "4"}),
        ("attended", {"k": tokens("values", "6"), "v": tokens("keys", "6")}),
        # norms
        ("norm_out", {"silu": False}),
        ("normal", {"input": replace(OUT_NORM, x="down_out")}),
        ("normal", {"statistics": "statistics"}),
        ("statistics", {"input": replace(OUT_NORM, x="norm_out", concat=None, upsample=False)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "_".join(value),
)
@each_dtype
def test_a_changed_operation_is_seen(result, fields, dtype):
    plan = small_network.plan(dtype)
    assert error(plan, dtype) < BUDGETS[dtype]
    assert not error(changed(plan, result, **fields), dtype) < 10 * BUDGETS[dtype]


@pytest.mark.parametrize(
    ("result", "fields"),
    [
        ("down_out", {"stride": 1}),
        ("result", {"padding": (0, 0, 0, 0)}),
        ("normal", {"input": replace(OUT_NORM, upsample=False)}),
        ("residual_out", {"residual": "down_out"}),
    ],
)
def test_what_has_another_shape_is_an_error(result, fields):
    with pytest.raises(ValueError, match=r"broadcast|must match"):
        error(changed(small_network.plan("float32"), result, **fields), "float32")


MEETING = [
    pair
    for plan in [small_network.plan("float32")]
    for alive in [lifetimes(plan, plan.extents(SIGNATURE, SIZES))]
    for pair in itertools.combinations(plan.buffers, 2)
    if alive[pair[0]].meets(alive[pair[1]])
]


def test_enough_buffers_meet():
    assert len(MEETING) >= 15


@pytest.mark.parametrize("pair", MEETING, ids="-".join)
@each_dtype
def test_buffers_that_overlap_while_both_are_alive_are_seen(pair, dtype):
    """By their whole, and by one number."""
    plan = small_network.plan(dtype)
    extents = plan.extents(SIGNATURE, SIZES)
    arena = lay_out(plan, extents)
    assert error(plan, dtype, arena=arena) < BUDGETS[dtype]
    first, second = pair
    end = arena.nbytes + extents.nbytes(first) + extents.nbytes(second)
    for distance in (0, extents.nbytes(first) - 4):
        offsets = {**arena.offsets, first: arena.nbytes, second: arena.nbytes + distance}
        overlapping = with_fields(arena, offsets=offsets, nbytes=end)
        assert not error(plan, dtype, arena=overlapping) < BUDGETS[dtype]
    apart = {**arena.offsets, first: arena.nbytes, second: arena.nbytes + extents.nbytes(first)}
    assert error(plan, dtype, arena=with_fields(arena, offsets=apart, nbytes=end)) < BUDGETS[dtype]


@pytest.mark.parametrize("result", PLACES)
def test_memory_that_nothing_wrote_to_reads_as_nan(result):
    """Also where it held another buffer's numbers."""
    plan = small_network.plan("float16")
    ops = tuple(op for place, op in enumerate(plan.ops) if place != PLACES[result])
    written = interpret(replace(plan, ops=ops), SIGNATURE, small_network.weights("float16"), inputs())["result"]
    assert np.isnan(written).all()


def test_memory_that_was_another_buffers_reads_as_nan():
    """Half of the rows that an operation does not write."""
    plan = changed(small_network.plan("float16"), "linear_out", out=replace(rows("linear_out"), strides=("0", "1")))
    assert np.isnan(interpret(plan, SIGNATURE, small_network.weights("float16"), inputs())["result"]).all()


def test_a_perturbed_weight_is_seen():
    weights, given = small_network.weights("float32"), inputs()
    truth = small_network.truth(weights, given)
    for name in WEIGHTS:
        perturbed = weights | {name: weights[name] * np.float32(1.1)}
        result = interpret(small_network.plan("float32"), SIGNATURE, perturbed, given)["result"]
        assert np.abs(result - truth).max() > 10 * BUDGETS["float32"], name


def test_numbers_that_overflow_become_infinite_without_a_warning():
    weights, given = small_network.weights("float16"), inputs()
    weights["last"] = np.full_like(weights["last"], 60000)
    with np.errstate(all="raise"):
        result = interpret(small_network.plan("float16"), SIGNATURE, weights, given)["result"]
    assert np.isinf(result).any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"time": np.zeros((2, 19), np.float32)}, r"expected time: float32 \(batch, 20\), got \(2, 19\)"),
        ({"image": np.zeros((2, 3, 6, 10), np.float16)}, "expected image: float32 .*, got float16"),
        ({"more": np.zeros(1)}, "expected the inputs .*, got .*'more'"),
    ],
)
def test_inputs_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        interpret(small_network.plan("float32"), SIGNATURE, small_network.weights("float32"), inputs() | given)


def test_buffers_hold_what_the_extents_say():
    plan = small_network.plan("float16")
    extents = plan.extents(SIGNATURE, SIZES)
    assert plan.buffers["residual_out"].dims == FULL
    assert extents.shape("residual_out") == (2, 6, 10, 8)
    assert extents.nbytes("residual_out", "statistics") == 2 * 6 * 10 * 8 * 2 + 2 * 2 * 2 * 4

import json

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from saishiki.runtime.errors import BundleError
from saishiki.runtime.plan import Buffer, HoistedVector, Plan, WeightSpec, json_from_plan, plan_from_json
from saishiki.runtime.plan.ops import Copy, Pool
from saishiki.runtime.plan.plan import PLAN_VERSION
from saishiki.runtime.signature import Signature, TensorSpec
from tests.runtime.plan.running import dense

IMAGES = ("batch", "height", "width", "8")
SMALLER = ("batch", "height/2", "width/2", "8")
SIGNATURE = Signature(
    (TensorSpec("x", "float32", IMAGES), TensorSpec("time", "float32", ("batch", "6"))),
    (TensorSpec("y", "float32", SMALLER),),
    {"height": 2, "width": 2},
)
SIZES = {"batch": 2, "height": 4, "width": 6}
COPY = Copy((dense("x", 2, 4, 6, 8),), 0, dense("rounded", 2, 4, 6, 8))
POOL = Pool("rounded", "y")
PLAN = Plan(
    version=PLAN_VERSION,
    dtype="float16",
    buffers={"rounded": Buffer("float16", IMAGES)},
    hoisted={"time.hoisted": HoistedVector("time", "biases")},
    weights={"biases": WeightSpec("float32", (6,))},
    ops=(COPY, POOL),
)
BROKEN = {
    "an unknown operand": (
        (replace(POOL, x="z"), POOL),
        r"operation 0 \(Pool\) touches z, which the plan does not have",
    ),
    "an unknown result": ((COPY, replace(POOL, out="z")), r"operation 1 \(Pool\) touches z, which the plan does not"),
    "read too early": ((POOL, COPY), r"operation 0 \(Pool\) reads rounded before anything is written to it"),
    "an output as an operand": ((replace(POOL, x="y"),), r"operation 0 \(Pool\) reads y before anything is written"),
    "writing to an input": ((COPY, replace(POOL, out="x")), r"operation 1 \(Pool\) writes to x, which is no buffer"),
    "writing to a weight": ((COPY, replace(POOL, out="biases")), r"operation 1 \(Pool\) writes to biases, which is no"),
    "writing to a hoisted vector": (
        (COPY, replace(POOL, out="time.hoisted")),
        r"operation 1 \(Pool\) writes to time.hoisted",
    ),
    "no writer of the output": ((COPY,), "nothing writes the output y"),
    "no operations": ((), "nothing writes the output y"),
}


def read(text: bytes) -> Plan:
    return plan_from_json(text, source="unet.plan.json", signature=SIGNATURE)


def text_with(**fields: object) -> bytes:
    return json.dumps(json.loads(json_from_plan(PLAN)) | fields).encode()


def test_round_trip():
    assert read(json_from_plan(PLAN)) == PLAN
    empty = replace(PLAN, buffers={}, hoisted={}, weights={}, ops=())
    assert msgspec.json.decode(json_from_plan(empty), type=Plan) == empty


def test_json_has_a_line_for_each_operation_buffer_and_weight():
    lines = json_from_plan(PLAN).decode().splitlines()
    assert lines == [
        "{",
        '"version": 1,',
        '"dtype": "float16",',
        '"buffers": {',
        ' "rounded": {"dtype":"float16","dims":["batch","height","width","8"]}',
        "},",
        '"hoisted": {',
        ' "time.hoisted": {"input":"time","bias":"biases"}',
        "},",
        '"weights": {',
        ' "biases": {"dtype":"float32","shape":[6]}',
        "},",
        '"ops": [',
        ' {"op":"copy","parts":[{"buffer":"x","shape":["2","4","6","8"],"strides":["192","48","8","1"]}],"axis":0,'
        '"out":{"buffer":"rounded","shape":["2","4","6","8"],"strides":["192","48","8","1"]}},',
        ' {"op":"pool","x":"rounded","out":"y"}',
        "]",
        "}",
    ]


@pytest.mark.parametrize(("version", "found"), [(2, "2"), (0, "0"), ("1", '"1"'), (None, "null"), ([1], "[1]")])
def test_another_version(version, found):
    message = r"^unet.plan.json: a plan of version .*, but this Saishiki reads version 1; export the checkpoint again"
    with pytest.raises(BundleError, match=message) as raised:
        read(text_with(version=version))
    assert f"of version {found.replace(' ', '')}, but" in str(raised.value)
    assert str(raised.value).endswith("with: export-engines CHECKPOINT --targets onnx,cuda")


def test_another_version_is_told_before_what_else_is_new_in_it():
    with pytest.raises(BundleError, match="a plan of version 7, but"):
        read(b'{"version": 7, "ops": [{"op": "warp"}]}')


def test_no_version():
    with pytest.raises(BundleError, match=r"^unet.plan.json: a plan of no version, but this Saishiki reads version 1"):
        read(b"{}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "truncated"),
        (json_from_plan(PLAN)[:-40], "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[1]", "Expected `object`, got `array`"),
        (text_with(ops=[{"op": "warp"}]), r"Invalid value 'warp' - at `\$\.ops\[0\]\.op`"),
        (text_with(ops=[{"op": "pool", "x": "rounded"}]), r"missing required field `out` - at `\$\.ops\[0\]`"),
        (text_with(ops=[{"op": "pool", "x": 3, "out": "y"}]), r"Expected `str`, got `int` - at `\$\.ops\[0\]\.x`"),
        (text_with(buffers={"a": {"dtype": "float16"}}), r"missing required field `dims` - at `\$\.buffers"),
        (text_with(weights={"a": {"dtype": "float16", "shape": ["6"]}}), r"Expected `int`, got `str`"),
        (
            text_with(
                ops=[{"op": "copy", "parts": [], "axis": 0, "out": {"buffer": "y", "shape": ["2"], "strides": []}}]
            ),
            r"y: expected a stride for each of \('2',\), got \(\)",
        ),
    ],
    ids=str,
)
def test_not_a_plan(text, reason):
    with pytest.raises(
        BundleError, match=rf"^unet.plan.json: not a valid plan \(.*{reason}.*\); export the checkpoint"
    ):
        read(text)


@pytest.mark.parametrize(("ops", "message"), BROKEN.values(), ids=BROKEN)
def test_operations_that_do_not_fit(ops, message):
    with pytest.raises(BundleError, match=rf"^unet.plan.json: {message}.*; export again$"):
        read(json_from_plan(replace(PLAN, ops=ops)))


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (HoistedVector("hour", "biases"), "time.hoisted is made of hour, which is no input"),
        (HoistedVector("y", "biases"), "time.hoisted is made of y, which is no input"),
        (HoistedVector("time", "rounded"), "time.hoisted is made of rounded, which is no weight"),
    ],
)
def test_hoisted_vectors_of_what_the_plan_lacks(vector, message):
    with pytest.raises(BundleError, match=rf"^unet.plan.json: {message}; export again$"):
        read(json_from_plan(replace(PLAN, hoisted={"time.hoisted": vector})))


def test_parts_of_a_buffer_may_be_written_one_by_one():
    ops = (Copy((dense("x", 2, 2),), 0, dense("rounded", 2, 2)), COPY, POOL)
    assert read(json_from_plan(replace(PLAN, ops=ops))).ops == ops


def test_uses():
    assert list(PLAN.uses()) == [(0, COPY, ("x", "rounded")), (1, POOL, ("rounded", "y"))]


def test_extents():
    extents = PLAN.extents(SIGNATURE, SIZES)
    assert {name: (extent.shape, extent.dtype) for name, extent in extents.of.items()} == {
        "x": ((2, 4, 6, 8), "float32"),
        "time": ((2, 6), "float32"),
        "y": ((2, 2, 3, 8), "float32"),
        "rounded": ((2, 4, 6, 8), "float16"),
        "time.hoisted": ((2, 6), "float16"),
        "biases": ((6,), "float32"),
    }
    assert extents.sizes == SIZES


def test_hoist_rounds_the_sum_once():
    """1 + 2^-11 is a tie of fp16, which 2^-13 in the bias decides; each rounded first, they would give 1."""
    rows = np.full((2, 6), 1 + 2.0**-11, np.float32)
    bias = np.array([0, 2**-13, -(2**-13), 1, -1, 0.1], np.float32)
    vector = PLAN.hoist("time.hoisted", rows, {"biases": bias})
    assert vector.dtype == np.float16
    assert vector.shape == (2, 6)
    np.testing.assert_array_equal(vector[1], (rows[1].astype(np.float64) + bias).astype(np.float16))
    assert vector[0, :3].tolist() == [1, 1 + 2**-10, 1]

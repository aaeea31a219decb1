"""That the judge judges: a case passes within its tolerance and fails outside it."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import conformance
from tests.conformance import Case, cases_of

WANT = np.array([1.0, -2.0, 0.0], np.float32)


def case_of(**entry) -> Case:
    return Case(conformance.FOLDER, {"name": "a", "module": "m", "inputs": {}, "outputs": {}} | entry)


def check(got, want, **entry) -> None:
    case_of(**entry)._check_one("y", np.asarray(got), np.asarray(want))


def test_tolerance_of_the_case():
    check(WANT + 0.009, WANT, atol=0.01, rtol=0)
    check(WANT * 1.009, WANT, atol=0, rtol=0.01)
    with pytest.raises(AssertionError, match="y"):
        check(WANT + 0.011, WANT, atol=0.01, rtol=0)


def test_tolerance_of_the_output_goes_before_the_cases():
    tolerances = {"atol": 0.1, "rtol": 0.0, "tol": {"y": {"atol": 0.01, "rtol": 0.0}, "z": {"atol": 9.0, "rtol": 0.0}}}
    check(WANT + 0.009, WANT, **tolerances)
    with pytest.raises(AssertionError, match="y"):
        check(WANT + 0.05, WANT, **tolerances)


@pytest.mark.parametrize(
    ("off", "allowed"),
    [
        ({}, 0),
        ({"u8_atol": 2}, 2),
        ({"tol": {"y": {"atol": 1.0, "rtol": 0.0}}, "atol": 5.0, "rtol": 0.0}, 1),
    ],
    ids=["exact", "case", "output"],
)
def test_levels_may_be_off_by_as_much_as_the_case_says(off, allowed):
    want = np.array([[0, 100, 255]], np.uint8)
    check(np.array([[allowed, 100, 255 - allowed]], np.uint8), want, **off)
    with pytest.raises(AssertionError, match=r"33\.3333% of the levels differ"):
        check(np.array([[0, 101 + allowed, 255]], np.uint8), want, **off)


def test_share_of_levels_that_may_be_off():
    want = np.zeros((1, 4), np.uint8)
    check(np.array([[9, 0, 0, 0]], np.uint8), want, max_mismatch_fraction=0.25)
    with pytest.raises(AssertionError, match=r"50\.0000%"):
        check(np.array([[9, 9, 0, 0]], np.uint8), want, max_mismatch_fraction=0.25)


def test_whole_numbers_and_shapes_are_exact():
    check(np.array([3, 4]), np.array([3, 4]), atol=9, rtol=9)
    with pytest.raises(AssertionError):
        check(np.array([3, 5]), np.array([3, 4]), atol=9, rtol=9)
    with pytest.raises(AssertionError, match=r"\(3,\) instead of \(1, 3\)"):
        check(WANT, WANT[None], atol=9, rtol=9)


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A family of one case, whose picture is stored as pixels."""
    folder = tmp_path / "some-family"
    folder.mkdir()
    pixels = np.array([[[[0, 51, 255]]]], np.uint8)
    save_file({"x": pixels, "raw": pixels, "y": WANT}, folder / "cases.safetensors")
    inputs, outputs = {"image": "x", "raw_u8": "raw"}, {"y": "y"}
    entry = {"name": "a", "module": "m", "inputs": inputs, "outputs": outputs, "u8_image_inputs": ["image"]}
    (folder / "cases.json").write_text(json.dumps({"cases": [entry | {"atol": 0.0, "rtol": 0.0}]}))
    monkeypatch.setattr(conformance, "FOLDER", tmp_path)
    return folder.name


def test_pictures_stored_as_pixels_are_normalised(family):
    (case,) = cases_of(family)
    assert case.inputs["image"].dtype == np.float32
    np.testing.assert_allclose(case.inputs["image"][0, 0, 0], [-1, -0.6, 1], atol=1e-7)
    assert case.inputs["raw_u8"].dtype == np.uint8


def test_check_wants_every_output(family):
    (case,) = cases_of(family)
    case.check({"y": WANT, "more": WANT})
    with pytest.raises(AssertionError, match="without y"):
        case.check({"z": WANT})

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pytest

from saishiki.runtime.options import OptionSpec, defaults_of, options_from, specs_of
from saishiki.runtime.pipelines import FAMILIES, option_types


@dataclass(frozen=True)
class Options:
    count: Annotated[int | None, OptionSpec("whole", "How many.", low=1)] = None
    share: Annotated[float, OptionSpec("number", "How much.", low=0, high=1)] = 0.5
    free: Annotated[float, OptionSpec("number", "Anything.")] = 0.0
    pair: Annotated[tuple[float, ...], OptionSpec("numbers", "Both.", length=2, low=0)] = (1.0, 1.0)
    bold: Annotated[bool, OptionSpec("switch", "Boldly.")] = False
    fit: Annotated[str, OptionSpec("choice", "How.", choices=("pad", "crop", "stretch"))] = "pad"
    extra: Annotated[Any, OptionSpec("picture", "A picture.")] = None


def make(**given):
    return options_from(Options, given, owner="This family")


def test_options_from_nothing_are_the_defaults():
    assert make() == Options()
    assert defaults_of(Options)["pair"] == (1.0, 1.0)
    assert [name for name, spec in specs_of(Options).items() if spec.optional] == ["count", "extra"]


def test_options_from_what_is_given():
    made = make(count=np.int64(3), share=1, free=float("nan"), pair=[0, 2], bold=True, fit="crop", extra=b"x")
    assert (made.count, made.share, made.pair, made.bold, made.fit, made.extra) == (3, 1, [0, 2], True, "crop", b"x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"share": 1.5}, "share must be between 0 and 1, got 1.5"),
        ({"share": float("inf")}, "share must be a finite number, got inf"),
        ({"pair": (1, 2, 3)}, "pair must be 2 numbers, got 3"),
        ({"pair": (1, -2)}, "each of pair must be at least 0, got -2"),
        ({"fit": "squeeze"}, "unknown fit 'squeeze'; expected pad, crop or stretch"),
    ],
)
def test_options_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"colour": 1, "mood": 2},
            "This family has no option 'colour', 'mood'; it has count, share, free, pair, bold, ",
        ),
        ({"count": 1.5}, "count must be a whole number, got 1.5"),
        ({"share": "0.5"}, "share must be a number, got '0.5'"),
        ({"share": True}, "share must be a number, got True"),
        ({"share": None}, "share must be a number, got None"),
        ({"pair": "1,2"}, "pair must be 2 numbers, got '1,2'"),
        ({"pair": (1, None)}, "each of pair must be a number, got None"),
        ({"bold": 1}, "bold must be True or False, got 1"),
    ],
)
def test_options_of_the_wrong_kind(given, message):
    with pytest.raises(TypeError, match=message):
        make(**given)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_defaults_are_options(family):
    kind = option_types()[family]
    assert options_from(kind, {}, owner=family) == kind()
    assert all(spec.help.endswith((".", "].", ",")) for spec in specs_of(kind).values())

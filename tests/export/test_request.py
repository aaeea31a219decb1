import pytest

from saishiki.export import parse_profiles
from saishiki.export.request import parse_precision, with_sides
from saishiki.models import FAMILIES


def points(profile):
    return [(p["batch"], p["height"], p["width"]) for p in (profile.min, profile.opt, profile.max)]


@pytest.mark.parametrize(
    ("size", "batch", "expected"),
    [
        ("256", "1", [(1, 256, 256)] * 3),
        ("256x384", "2", [(2, 256, 384)] * 3),
        ("128:256:512", "1:4", [(1, 128, 128), (1, 256, 256), (4, 512, 512)]),
        ("128:512", "1:2:4", [(1, 128, 128), (2, 128, 128), (4, 512, 512)]),
        ("64x128:128x128:128x512", "1", [(1, 64, 128), (1, 128, 128), (1, 128, 512)]),
        ("4096", "64", [(64, 4096, 4096)] * 3),
    ],
)
def test_parse_profiles(size, batch, expected):
    (profile,) = parse_profiles([size], batch)
    assert points(profile) == expected
    assert [p["steps"] for p in (profile.min, profile.opt, profile.max)] == [1, 10, 999]


def test_parse_profiles_several():
    assert [points(p)[0] for p in parse_profiles(["64", "96x64"], "2")] == [(2, 64, 64), (2, 96, 64)]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("big", r"--size big: expected 256, 256x384 \(height x width\) or a range 128:256:512"),
        ("", r"--size : expected 256"),
        ("256x", r"--size 256x: expected 256"),
        ("256x256x3", r"--size 256x256x3: expected 256"),
        ("-256", r"--size -256: expected 256"),
        ("25.6", r"--size 25\.6: expected 256"),
        ("256:", r"--size 256:: expected 256"),
        ("0", r"--size 0: expected whole numbers between 1 and 4096, got '0'"),
        ("8192", r"--size 8192: expected whole numbers between 1 and 4096, got '8192'"),
        ("256x0", r"--size 256x0: expected whole numbers between 1 and 4096, got '0'"),
        ("512:256", r"--size 512:256: expected one value, or two or three with colons, smallest first"),
        ("64x512:128x256", r"--size 64x512:128x256: expected one value, or two or three with colons, smallest first"),
        ("1:2:3:4", r"--size 1:2:3:4: expected one value, or two or three"),
    ],
)
def test_parse_profiles_bad_size(size, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_profiles([size], "1")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("many", "--batch many: expected whole numbers between 1 and 64, got 'many'"),
        ("0", "--batch 0: expected whole numbers between 1 and 64, got '0'"),
        ("65", "--batch 65: expected whole numbers between 1 and 64, got '65'"),
        ("-1", "--batch -1: expected whole numbers between 1 and 64, got '-1'"),
        ("1.5", "--batch 1.5: expected whole numbers between 1 and 64"),
        ("4:1", "--batch 4:1: expected one value, or two or three with colons, smallest first"),
        ("1:2:3:4", "--batch 1:2:3:4: expected one value, or two or three"),
    ],
)
def test_parse_profiles_bad_batch(batch, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_profiles(["256"], batch)


def test_a_profile_without_a_size_takes_the_familys():
    (profile,) = parse_profiles([], "1:2:4")
    assert profile.opt == {"batch": 2, "steps": 10}
    sized = with_sides(profile, 512)
    assert (sized,) == parse_profiles(["512"], "1:2:4")
    assert with_sides(sized, 256) is sized
    assert {family.name: family.side_px for family in FAMILIES} == {
        "animediffusion": 256,
        "colorizediffusion-v1": 512,
        "colorizediffusion-v1.5": 512,
        "colorizediffusion-v2": 512,
    }


@pytest.mark.parametrize(("text", "expected"), [("both", ("fp32", "fp16")), ("fp16", ("fp16",)), ("fp32", ("fp32",))])
def test_parse_precision(text, expected):
    assert parse_precision(text) == expected


@pytest.mark.parametrize("text", ["", "bf16", "FP16", "fp16,fp32"])
def test_parse_precision_of_another_word(text):
    with pytest.raises(ValueError, match=rf"--precision {text}: expected both, fp16, fp32"):
        parse_precision(text)

"""The page about the family says what the code does."""

from pathlib import Path

import pytest

from saishiki.runtime.options import defaults_of, specs_of
from saishiki.runtime.pipelines.colorizediffusion import GENERATIONS, MODES, ColorizeDiffusionOptions
from saishiki.runtime.samplers import SAMPLERS
from tests.runtime.pipelines.colorizediffusion.test_pipeline import (
    MASKS,
    REFERENCE,
    REFERENCE_MASK,
    SKETCH,
    SKETCH_MASK,
    colorizer_of,
)

PAGE = (Path(__file__).parents[4] / "docs" / "colorizediffusion.md").read_text()


def rows_under(heading):
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]


def written(default):
    if isinstance(default, tuple):
        return ", ".join(f"{part:g}" for part in default)
    words = {None: "none", False: "off"}
    return words[default] if default is None or default is False else f"{default:g}" if default == 0 else str(default)


def test_every_option_is_there_with_its_default_and_help():
    stated = {name.strip("`"): (default, text) for name, default, text in rows_under("Options")}
    specs, defaults = specs_of(ColorizeDiffusionOptions), defaults_of(ColorizeDiffusionOptions)
    wanted = {name: (written(defaults[name]).removesuffix(".0"), spec.help) for name, spec in specs.items()}
    assert stated == wanted


def test_every_mode_is_there_for_its_generations():
    stated = {row[0].strip("`"): row[1:4] for row in rows_under("Modes")}
    every = dict.fromkeys(mode for modes in MODES.values() for mode in modes)
    assert stated.keys() == every.keys()
    for mode, cells in stated.items():
        assert [cell == "yes" for cell in cells] == [mode in MODES[generation] for generation in GENERATIONS]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_there(sampler):
    assert f"`{sampler}`" in " ".join(PAGE.split())


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"mode": "full", "reference_mask": REFERENCE_MASK}, REFERENCE),
        ({"mode": "background", "sketch_mask": SKETCH_MASK}, REFERENCE),
        ({"mode": "style"}, None),
        ({"mode": "full", **MASKS, "sketch_mask": REFERENCE_MASK}, REFERENCE),
        ({"size": 100}, REFERENCE),
        ({"size": (64, 1024)}, REFERENCE),
        ({"guidance_scale": -1}, REFERENCE),
        ({"sampler": "brownian"}, REFERENCE),
        ({"steps": 0}, REFERENCE),
        ({"merge_scale": 1.5}, REFERENCE),
        ({"preprocess": "extract"}, REFERENCE),
        ({"eta": 1}, REFERENCE),
        ({"remove_background": True}, REFERENCE),
    ],
)
def test_documented_errors_are_those_that_are_raised(options, reference):
    with pytest.raises((ValueError, TypeError), match=r"\w") as caught:
        colorizer_of("v2")(SKETCH, reference, **options)
    beginning = str(caught.value)[:40]
    assert f"| `{beginning}" in PAGE or f"; `{beginning}" in PAGE


def test_a_page_that_says_something_else_would_be_found():
    assert "| `guidance_scale must be at least 1" not in PAGE
    assert "`DPM adaptive`, " in PAGE
    assert "DPM adaptive" not in SAMPLERS

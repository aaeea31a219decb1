from ast import literal_eval

import click
import numpy as np
import pytest
from click.testing import CliRunner

from saishiki.runtime import cli
from saishiki.runtime import colorizer as colorizer_module
from saishiki.runtime.cli_options import Numbers, Size, family_flags, options_given
from saishiki.runtime.images import write_image
from saishiki.runtime.pipelines import option_types
from tests.pictures import draw_sketch, paint_reference
from tests.runtime.pipelines.colorizediffusion.stand_ins import FakeBackend, bundle_of


@click.command()
@click.option("--size", type=Size())
@family_flags
def command(size, **flags):
    click.echo(repr((size, options_given("colorizediffusion-v2", flags))))


def flags_of(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_flags_that_are_not_used_are_not_given():
    assert flags_of().output == "(None, {})\n"


def test_flags_become_options():
    numbers = ["--level-strengths", "1,0.5,0", "--steps", 7, "--merge-scale", 0]
    result = flags_of("--size", "512x768", "--mode", "full", "--crop", *numbers)
    size, options = literal_eval(result.output)
    assert size == (512, 768)
    assert options == {"mode": "full", "crop": True, "level_strengths": (1.0, 0.5, 0.0), "steps": 7, "merge_scale": 0.0}


def test_every_option_has_its_flag():
    flags = {option for parameter in command.params for option in parameter.opts}
    for kind in set(option_types().values()):
        wanted = {f"--{name.replace('_', '-')}" for name in kind.__dataclass_fields__} - {"--reference-noise"}
        assert wanted <= flags


def test_a_flag_of_another_family():
    with pytest.raises(
        ValueError, match=r"--eta, --fit: not an option of colorizediffusion-v1 bundles; they have --mode"
    ):
        options_given("colorizediffusion-v1", {"eta": 1.0, "fit": "pad", "mode": "vanilla", "crop": False})
    with pytest.raises(ValueError, match=r"--mode: not an option of animediffusion bundles; they have --steps, --eta"):
        options_given("animediffusion", {"mode": "full", "steps": None})


def test_an_unknown_family_is_told_elsewhere():
    assert options_given("sparkle", {"mode": "full", "crop": False}) == {"mode": "full"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--level-strengths", "1;2"), "'1;2': expected numbers with commas between them, such as 1,0.5,1"),
        (("--size", "512x"), "'512x': expected a number, or height x width such as 512x768"),
        (("--size", "-64"), "'-64': expected a number, or height x width"),
        (("--mode", "sparkle"), "'sparkle' is not one of 'vanilla', 'style'"),
    ],
)
def test_flags_that_cannot_be_read(arguments, message):
    result = flags_of(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_types_read_what_they_print():
    assert Numbers().convert("1,0.25", None, None) == (1.0, 0.25)
    assert Size().convert("64", None, None) == (64, 64)


@pytest.fixture
def on_stand_ins(monkeypatch):
    """``colorize`` with a fake bundle, whatever its path."""
    backend = FakeBackend()
    monkeypatch.setattr(cli.Bundle, "open", lambda path: bundle_of("v2"))
    monkeypatch.setattr(colorizer_module, "open_backend", lambda *_: backend)
    return backend


def test_colorize_by_colorizediffusion(on_stand_ins, tmp_path):
    write_image(tmp_path / "sketch.png", draw_sketch(60, 100))
    write_image(tmp_path / "reference.png", paint_reference(52, 38))
    write_image(tmp_path / "mask.png", np.full((60, 100), 255, np.uint8))
    pictures = [str(tmp_path / name) for name in ("sketch.png", "reference.png")]
    output = ["-o", str(tmp_path / "out.png"), "--quiet"]
    options = ["--mode", "foreground", "--sketch-mask", str(tmp_path / "mask.png"), "--steps", "2", "--size", "64x128"]
    result = CliRunner().invoke(cli.colorize, ["fake", *pictures, *output, *options])
    assert result.exit_code == 0, result.output
    assert on_stand_ins.calls["denoiser_split_reference"] == 2
    alone = CliRunner().invoke(cli.colorize, ["fake", pictures[0], *output, "--steps", "2"])
    assert alone.exit_code == 0, alone.output
    assert not on_stand_ins.last["context_projector"]["context"].any()
    wrong = CliRunner().invoke(cli.colorize, ["fake", *pictures, *output, "--eta", "0"])
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (1, 1)
    assert "Error: --eta: not an option of colorizediffusion-v2 bundles" in wrong.stderr

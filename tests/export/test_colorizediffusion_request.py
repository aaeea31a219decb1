"""What the command line asks of a ColorizeDiffusion export."""

import pytest
from click.testing import CliRunner

from saishiki.export import cli
from saishiki.export.request import names_in, parse_guidance, parse_modes
from saishiki.models import LoadOptions


def test_parse_modes_and_guidance_keep_their_order():
    assert parse_modes("full, vanilla") == ("vanilla", "full")
    assert parse_guidance("both,none") == ("none", "both")
    assert parse_modes(None) is parse_guidance(None) is None
    assert names_in(None) == () == names_in(" , ")


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (
            parse_modes,
            "vanila",
            "--modes vanila: expected some of vanilla, style, background, full, foreground",
        ),
        (parse_modes, "", "--modes : expected some of vanilla"),
        (
            parse_guidance,
            "none,all",
            "--guidance none,all: expected some of none, reference, sketch, both, with",
        ),
    ],
)
def test_words_that_are_none_are_refused(parse, text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.fixture
def requested(monkeypatch):
    """The request that a command line makes; nothing is exported."""

    class StopError(Exception):
        pass

    def ask(*arguments):
        seen = []

        def export(request, observer):
            seen.append(request)
            raise StopError

        monkeypatch.setattr(cli, "export_bundle", export)
        result = CliRunner().invoke(cli.main, ["x.safetensors", "--targets", "onnx", *arguments])
        return seen[0] if seen else result

    return ask


def test_flags_become_options(requested, tmp_path):
    tower = tmp_path / "clip.safetensors"
    flags = ["--modes", "full,vanilla", "--guidance", "reference,both", "--merge", "--prediction", "eps"]
    flags += ["--image-encoder", str(tower), "--head-channels", "32", "--without-hoists", "kv,time"]
    request = requested(*flags, "--size", "512x768", "--size", "768x512")
    assert request.load == LoadOptions(
        head_channels=32,
        prediction="eps",
        image_encoder=tower,
        modes=("vanilla", "full"),
        guidance=("reference", "both"),
        merge=True,
        without_hoists=("time", "kv"),
    )
    assert [(p.opt["height"], p.opt["width"]) for p in request.profiles] == [(512, 768), (768, 512)]
    assert requested().load == LoadOptions()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--modes", "all"], "--modes all: expected some of vanilla"),
        (["--guidance", "strong"], "--guidance strong: expected some of none"),
        (["--without-hoists", "kv,vk"], "no hoist vk: expected some of time, kv"),
        (["--prediction", "x0"], "'x0' is not one of 'eps', 'v'"),
    ],
)
def test_bad_flags_are_told(flags, message, requested):
    result = requested(*flags)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())

import json
import os
import stat
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from saishiki.runtime import cli
from saishiki.runtime.cli_errors import exit_on_error
from saishiki.runtime.images import write_image
from saishiki.runtime.manifest import manifest_from_json
from tests.bundles import copy_bundle, edit_manifest, flip_byte, perturb_weights, rewrite_file
from tests.pictures import draw_sketch, paint_reference

WEIGHTS = "onnx/denoiser.fp32.onnx.data"


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def pictures(tmp_path):
    """Paths of a sketch and a reference, alone in a folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = folder / "sketch.png", folder / "reference.png"
    for path, picture in zip(paths, (draw_sketch(45, 61), paint_reference(30, 40)), strict=True):
        Image.fromarray(picture).save(path)
    return paths


def assert_one_error(result, message):
    """Exit code 1, and one readable line on stderr."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert message in line


# colorize


@pytest.mark.parametrize("name", ["out.png", "out.webp", "out.jpg"])
def test_colorize(tiny_bundle, pictures, tmp_path, colorizer, name):
    output = tmp_path / name
    result = run(cli.colorize, tiny_bundle, *pictures, "-o", output, "--steps", 2, "--seed", 5)
    assert (result.exit_code, result.stdout) == (0, f"{output}\n"), result.output
    write_image(pictures[0].with_name(name), np.asarray(colorizer(*pictures, steps=2, seed=5)))
    got, want = np.asarray(Image.open(output)), np.asarray(Image.open(pictures[0].with_name(name)))
    assert got.shape == (45, 61, 3)
    np.testing.assert_array_equal(got, want)
    assert {path.name for path in tmp_path.iterdir()} == {name, "pictures"}


def test_colorize_is_also_a_command_of_saishiki(tiny_bundle, pictures, tmp_path, colorizer):
    options = ["--steps", 3, "--eta", 0, "--start", "noised-reference", "--fit", "stretch", "--line-art", "xdog"]
    options += ["--backend", "onnxruntime", "--device", "cpu", "--precision", "fp32", "--quiet"]
    result = run(cli.main, "colorize", tiny_bundle, *pictures, "-o", tmp_path / "out.png", *options)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    want = colorizer(*pictures, steps=3, eta=0.0, start="noised-reference", fit="stretch", line_art="xdog")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.asarray(want))


def test_colorize_replaces_a_picture(tiny_bundle, pictures, tmp_path):
    (tmp_path / "out.png").write_bytes(b"old")
    assert run(cli.colorize, tiny_bundle, *pictures, "-o", tmp_path / "out.png", "--steps", 1).exit_code == 0
    assert Image.open(tmp_path / "out.png").size == (61, 45)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", -1], "steps must be between 1 and 999, got -1"),
        (["--steps", 0], "steps must be between 1 and 999, got 0"),
        (["--steps", 5000], "steps must be between 1 and 999, got 5000"),
        (["--eta", "nan"], "eta must be between 0 (deterministic) and 1 (published default), got nan"),
        (["--eta", 2], "eta must be between 0"),
        (["--seed", -3], "seeds must not be negative, got -3"),
        (["--start", "middle"], "unknown start 'middle'; expected one of noise, reference-walk, noised-reference"),
        (["--backend", "dml"], "unknown backend 'dml'; expected auto or one of"),
        (["--device", "gpu"], "unknown device 'gpu'; expected cpu, cuda or cuda:N"),
    ],
)
def test_colorize_with_wrong_options(tiny_bundle, pictures, tmp_path, options, message):
    result = run(cli.colorize, tiny_bundle, *pictures, "-o", tmp_path / "out.png", *options)
    assert_one_error(result, message)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    "options", [["--precision", "fp8"], ["--fit", "squeeze"], ["--line-art", "canny"], ["--steps", "x"], ["--stepz", 1]]
)
def test_colorize_with_options_that_click_refuses(tiny_bundle, pictures, tmp_path, options):
    result = run(cli.colorize, tiny_bundle, *pictures, "-o", tmp_path / "out.png", *options)
    assert result.exit_code == 2
    assert options[0] in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out.png").exists()


def test_colorize_of_pictures_that_cannot_be_used(tiny_bundle, pictures, tmp_path):
    output, broken = tmp_path / "out.png", tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    colorize = [tiny_bundle, pictures[0], tmp_path / "none.png", "-o", output]
    assert_one_error(run(cli.colorize, *colorize), "none.png")
    colorize[1:3] = broken, pictures[1]
    assert_one_error(run(cli.colorize, *colorize), "broken.png is ")
    assert not output.exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("none/out.png", "does not exist: create it before writing out.png"),
        ("out.gif", "has the suffix '.gif': use one of .png, .webp, .jpg, .jpeg"),
        ("out", "has the suffix ''"),
        ("folder.png", "folder.png"),
    ],
)
def test_colorize_to_a_target_that_cannot_be_written(tiny_bundle, pictures, tmp_path, target, message):
    (tmp_path / "folder.png").mkdir()
    result = run(cli.colorize, tiny_bundle, *pictures, "-o", tmp_path / target, "--steps", 1)
    assert_one_error(result, message)
    assert {path.name for path in tmp_path.iterdir()} == {"folder.png", "pictures"}
    assert list((tmp_path / "folder.png").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_colorize_into_a_read_only_folder(tiny_bundle, pictures, tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert_one_error(run(cli.colorize, tiny_bundle, *pictures, "-o", folder / "out.png", "--steps", 1), "Permission")
    assert list(folder.iterdir()) == []


def test_colorize_with_a_bundle_that_is_none(pictures, tmp_path):
    output = tmp_path / "out.png"
    assert_one_error(run(cli.colorize, tmp_path / "none", *pictures, "-o", output), "no such bundle; make one with")
    assert_one_error(run(cli.colorize, tmp_path, *pictures, "-o", output), "holds no manifest.json")
    assert not output.exists()


def test_colorize_with_a_damaged_bundle(bundle_copy, pictures, tmp_path):
    flip_byte(bundle_copy / WEIGHTS)
    result = run(cli.colorize, bundle_copy, *pictures, "-o", tmp_path / "out.png")
    assert_one_error(result, f"{WEIGHTS} is damaged")
    assert not (tmp_path / "out.png").exists()


# verify


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_verify_is_green(tiny_bundle, precision):
    result = run(cli.main, "verify", tiny_bundle, "--backend", "onnxruntime", "--precision", precision)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "passed"
    assert "denoiser" in result.stdout
    assert "failed" not in result.stdout


def test_verify_json(tiny_bundle):
    result = run(cli.main, "verify", tiny_bundle, "--json")
    assert result.exit_code == 0
    certificate = json.loads(result.stdout)
    assert (certificate["verdict"], certificate["backend"]) == ("passed", "onnxruntime")
    assert {row["module"] for row in certificate["rows"]} == {"denoiser", "time_projection"}
    assert all(row["error"] <= row["budget"] for row in certificate["rows"])


def subtracting_graph(content):
    """The graph with the first addition turned into a subtraction."""
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'saishiki[export]'")
    model = onnx.load_from_string(content)
    next(node for node in model.graph.node if node.op_type == "Add").op_type = "Sub"
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("name", "change"),
    [(WEIGHTS, perturb_weights), ("onnx/denoiser.fp32.onnx", subtracting_graph)],
    ids=["weights", "graph"],
)
def test_verify_is_red_for_what_was_changed_consistently(bundle_copy, name, change):
    rewrite_file(bundle_copy, name, change)
    result = run(cli.main, "verify", bundle_copy)
    assert result.exit_code == 1
    assert "failed" in result.stdout
    assert "passed" not in result.stdout.splitlines()[-1]
    assert result.stderr == (f"Error: {bundle_copy} does not compute what its checkpoint computes, on onnxruntime\n")
    as_json = run(cli.main, "verify", bundle_copy, "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)["verdict"]) == (1, "failed")


def test_verify_measures_a_bundle_whose_certificate_failed(bundle_copy):
    edit_manifest(bundle_copy, lambda fields: fields["certificate"].update(verdict="failed"))
    assert run(cli.main, "verify", bundle_copy).exit_code == 0


@pytest.mark.parametrize("name", ["parity.safetensors", "schedule.safetensors", WEIGHTS, "onnx/denoiser.fp32.onnx"])
def test_verify_of_a_damaged_file(bundle_copy, name):
    flip_byte(bundle_copy / name)
    assert_one_error(run(cli.main, "verify", bundle_copy), f"{name} is damaged")


def test_verify_of_a_graph_that_does_not_load(bundle_copy):
    rewrite_file(bundle_copy, "onnx/denoiser.fp32.onnx", lambda content: content[: len(content) // 2])
    assert_one_error(run(cli.main, "verify", bundle_copy), "cannot load it")


def test_verify_closes_the_backend_when_it_fails(bundle_copy, monkeypatch):
    class Backend:
        name, default_precision, closed = "onnxruntime", "fp32", False

        def load(self, *_):
            raise ValueError("no such thing")

        def close(self):
            self.closed = True

    backend = Backend()
    monkeypatch.setattr(cli, "open_backend", lambda *_: backend)
    assert_one_error(run(cli.main, "verify", bundle_copy), "no such thing")
    assert backend.closed


# inspect and doctor


def test_inspect(tiny_bundle, bundle):
    result = run(cli.main, "inspect", tiny_bundle)
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    for expected in ("animediffusion (custom), predicts eps", "ddim, 10 steps, eta 1, start noise", "channel_base 64"):
        assert expected in words
    assert bundle.manifest.checkpoint.sha256[:16] in words
    assert "parity certificate: passed" in words


def test_inspect_json(tiny_bundle, bundle):
    result = run(cli.main, "inspect", tiny_bundle, "--json")
    assert result.exit_code == 0
    assert manifest_from_json(result.stdout.encode(), source="stdout") == bundle.manifest


def test_inspect_shows_a_failed_certificate(bundle_copy):
    edit_manifest(bundle_copy, lambda fields: fields["certificate"].update(verdict="failed"))
    result = run(cli.main, "inspect", bundle_copy)
    assert result.exit_code == 0
    assert "parity certificate: failed" in result.stdout


def test_inspect_prints_brackets_as_they_are(tiny_bundle, tmp_path):
    bundle = copy_bundle(tiny_bundle, tmp_path)
    edit_manifest(bundle, lambda fields: fields.update(export_command="export [/x] [red]y"))
    result = run(cli.main, "inspect", bundle.rename(tmp_path / "[b]"))
    assert result.exit_code == 0, result.output
    assert "[/x] [red]y" in result.stdout
    assert "[b]" in result.stdout


def test_inspect_of_no_bundle(tmp_path):
    assert_one_error(run(cli.main, "inspect", tmp_path / "none"), "no such bundle")
    (tmp_path / "manifest.json").write_text("[1, 2]")
    assert_one_error(run(cli.main, "inspect", tmp_path), "not a valid manifest")


def test_doctor():
    result = run(cli.main, "doctor")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("saishiki ")
    names = [f"{name} on cuda" for name in ("tensorrt-rtx", "tensorrt", "cuda-cudnn", "cuda-triton", "onnxruntime")] + [
        "onnxruntime on cpu"
    ]
    assert [" ".join(line.split()[1:4]).rstrip(":") for line in lines[1:]] == names
    assert lines[-1].split() == ["works", "onnxruntime", "on", "cpu"]


def test_doctor_where_nothing_works(monkeypatch):
    monkeypatch.setattr(cli, "diagnose", lambda: {"tensorrt-rtx on cuda": "no driver [here]"})
    result = run(cli.main, "doctor")
    assert result.exit_code == 1
    assert "unavailable  tensorrt-rtx on cuda: no driver [here]" in result.stdout


def test_unknown_command():
    result = run(cli.main, "paint")
    assert result.exit_code == 2
    assert "No such command 'paint'" in result.stderr


@pytest.mark.parametrize("command", [cli.main, cli.colorize])
def test_version_and_help(command):
    assert run(command, "--version").stdout.split()[-1] == cli.version("saishiki")
    assert "Usage: " in run(command, "-h").stdout


# exit_on_error


def test_exit_on_error_lets_our_own_mistakes_through():
    @click.command()
    @exit_on_error
    def command():
        raise ZeroDivisionError

    assert isinstance(run(command).exception, ZeroDivisionError)


def test_exit_on_error_shows_the_traceback_when_asked(monkeypatch):
    @click.command()
    @exit_on_error
    def command():
        raise ValueError("wrong")

    assert_one_error(run(command), "wrong")
    monkeypatch.setenv("SAISHIKI_TRACEBACK", "1")
    assert isinstance(run(command).exception, ValueError)


def test_the_installed_commands_are_these(monkeypatch):
    from importlib.metadata import entry_points

    found = {point.name: point.value for point in entry_points(group="console_scripts") if "saishiki" in point.value}
    assert found["colorize"] == "saishiki.runtime.cli:colorize"
    assert found["saishiki"] == "saishiki.runtime.cli:main"
    assert sys.modules["saishiki.runtime.cli"] is cli

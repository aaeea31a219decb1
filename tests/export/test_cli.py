import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from saishiki.export.cli import main
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.cli import main as saishiki
from saishiki.runtime.errors import BundleError
from tests.export.conftest import BUILDABLE, python_environment

needs_rtx = pytest.mark.skipif(
    BUILDABLE != "rtx", reason="needs TensorRT-RTX, whose builder needs no GPU: pip install 'saishiki[rtx]'"
)


@pytest.fixture
def run(tmp_path, monkeypatch, exported_by_command):
    """Runs the command line in this process and an empty folder, with the cache of the command that ran before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAISHIKI_CACHE", str(exported_by_command.cache))

    def invoke(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


def assert_failed(result, message, tmp_path, *, left=()):
    """Exit code 1, one line that begins with Error, and nothing written."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert result.stderr.endswith(errors[0] + "\n")
    assert "Traceback" not in result.stderr
    assert sorted(os.listdir(tmp_path)) == sorted(left)


def test_command_prints_a_table(exported_by_command):
    out = exported_by_command.out
    heading = next(line for line in out.splitlines() if "module" in line)
    words = [word.strip() for word in heading.strip("┃ ").split("┃")]
    assert words == ["module", "engine", "nodes", "MB", "build s", "error against fp32", "budget", "verdict"]
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in out.splitlines() if line.startswith("│")]
    assert [row[:2] for row in rows if "tensorrt" not in row[1]] == [
        ["time_projection", "ONNX fp32"],
        ["denoiser", "ONNX fp32"],
        ["denoiser", "ONNX fp16"],
        ["image 1x8x8, 10 steps", "ONNX fp32"],
        ["image 1x8x8, 10 steps", "ONNX fp16"],
    ]
    assert {row[7] for row in rows if row[1].startswith("ONNX")} == {"passed"}
    assert all(int(row[2]) > 10 and float(row[3]) > 0.1 for row in rows if row[0] == "denoiser")
    assert out.endswith("bundle: smallest.saishiki\n")


@needs_rtx
def test_command_builds_engines_for_sm89(exported_by_command):
    manifest = Bundle.open(exported_by_command.bundle).manifest
    for name, precision in (("denoiser", "fp16"), ("time_projection", "fp32")):
        (engine,) = manifest.modules[name].engines
        assert (engine.backend, engine.target, engine.key.precision) == ("tensorrt-rtx", "sm89", precision)
        assert engine.file.bytes == (exported_by_command.bundle / engine.file.path).stat().st_size > 10_000
        assert engine.build_seconds > 0
        assert f"tensorrt-rtx sm89 {precision}" in exported_by_command.out
    assert "not run here" in exported_by_command.out


def test_command_reports_progress_on_stderr_alone(exported_by_command):
    assert "smallest.safetensors: animediffusion (custom)" in exported_by_command.err
    assert "animediffusion (custom), checkpoint smallest.safetensors" in exported_by_command.out
    assert exported_by_command.out.count("smallest.safetensors") == 1


@needs_rtx
def test_second_run_reuses_the_engines_and_prints_one_json_object(run, reused_graphs, smallest_checkpoint, tmp_path):
    result = run(smallest_checkpoint, "--targets", "rtx", "--size", "8", "--json", "--rebuild", "-o", "again")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert list(printed) == ["verdict", "bundle", "reused_engines", "manifest"]
    assert (printed["verdict"], printed["bundle"], printed["reused_engines"]) == ("passed", "again", 2)
    assert result.stderr.count("reused from the cache") == 2
    # The file also states a digest of itself.
    written = json.loads((tmp_path / "again" / "manifest.json").read_bytes())
    assert {name: written[name] for name in printed["manifest"]} == printed["manifest"]
    assert len(Bundle.open(tmp_path / "again").manifest.modules["denoiser"].engines) == 1


def test_targets_onnx_needs_no_builder(run, reused_graphs, smallest_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    result = run(smallest_checkpoint, "--targets", "onnx", "--size", "8")
    assert result.exit_code == 0, result.output
    manifest = Bundle.open(tmp_path / "smallest.saishiki").manifest
    assert [module.engines for module in manifest.modules.values()] == [(), ()]
    assert "engines" not in os.listdir(tmp_path / "smallest.saishiki")


def test_targets_rtx_without_the_package(run, smallest_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    result = run(smallest_checkpoint, "--targets", "rtx", "--size", "8")
    assert_failed(result, "pip install 'saishiki[rtx]'", tmp_path)


@pytest.mark.parametrize(("as_json", "keep"), [(False, False), (True, True)], ids=["table", "json-keep-failed"])
def test_failed_certificate(run, reused_graphs, smallest_checkpoint, tmp_path, as_json, keep, monkeypatch):
    from saishiki.runtime import schedule

    original = schedule.ddim_timesteps
    monkeypatch.setattr(schedule, "ddim_timesteps", lambda *sizes: tuple(t - (t > 1) for t in original(*sizes)))
    arguments = [*(["--json"] if as_json else []), *(["--keep-failed"] if keep else [])]
    result = run(smallest_checkpoint, "--targets", "onnx", "--size", "8", "--rebuild", *arguments)
    assert result.exit_code == 1
    assert [line[:62] for line in result.stderr.splitlines() if "Error" in line] == [
        "Error: the export is not equivalent to the checkpoint, kept as"
        if keep
        else "Error: the export is not equivalent to the checkpoint, no bund"
    ]
    bundle = tmp_path / "smallest.saishiki"
    if as_json:
        printed = json.loads(result.stdout)
        assert printed["verdict"] == "failed"
        assert printed["bundle"] == ("smallest.saishiki" if keep else None)
        assert printed["manifest"]["certificate"]["images"][0]["passed"] is False
    else:
        assert result.stdout.count("failed") == 2
        assert ("bundle: smallest.saishiki" in result.stdout) == keep
    assert os.listdir(tmp_path) == (["smallest.saishiki"] if keep else [])
    if keep:
        with pytest.raises(BundleError, match="its parity certificate failed"):
            Bundle.open(bundle)


def test_notices_are_shown_with_json_too(run, reused_graphs, smallest_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    save_file(load_file(smallest_checkpoint), tmp_path / "silent.safetensors")
    result = run("silent.safetensors", "--targets", "onnx", "--size", "8", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["manifest"]["checkpoint"]["name"] == "silent.safetensors"
    assert "assuming the published 4 (say otherwise with --attention-heads)" in result.stderr


def test_attention_heads_reach_the_reference(run, reused_graphs, smallest_checkpoint):
    """The graphs have four heads, so an export with two must fail."""
    result = run(smallest_checkpoint, "--targets", "onnx", "--size", "8", "--attention-heads", "2", "--json")
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert printed["manifest"]["config"]["attention_head"] == 2
    assert printed["verdict"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "big"], "--size big: expected 256, 256x384 (height x width) or a range 128:256:512"),
        (["--size", "9999"], "--size 9999: expected whole numbers between 1 and 4096"),
        (["--size", "64:32"], "--size 64:32: expected one value, or two or three with colons, smallest first"),
        (["--batch", "0"], "--batch 0: expected whole numbers between 1 and 64, got '0'"),
        (["--batch", "2:1"], "--batch 2:1: expected one value, or two or three with colons, smallest first"),
        (["--targets", "vulkan"], "no target 'vulkan'; expected onnx, rtx, rtx:sm89, tensorrt or cuda"),
        (["--sm", "90"], "not for sm90 (H100, H200): build for the target tensorrt on that machine"),
        (["--sm", "70"], "TensorRT-RTX builds for sm75, sm80, sm86, sm89, sm120, sm121; not for sm70"),
        (["--targets", "onnx", "--sm", "89"], "--sm 89 concerns the target rtx, but the targets are onnx; add rtx"),
        (
            ["--attention-heads", "3", "--targets", "onnx"],
            "3 attention heads do not divide the bottleneck's 64 channels",
        ),
        (
            ["--attention-heads", "0", "--targets", "onnx"],
            "0 attention heads do not divide the bottleneck's 64 channels",
        ),
        (["-o", "no/such/place", "--targets", "onnx"], "no/such does not exist; make it first"),
        (["-o", "/", "--targets", "onnx", "--overwrite"], "/ exists and is not a bundle; choose another place with -o"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(run, smallest_checkpoint, tmp_path, arguments, message):
    assert_failed(run(smallest_checkpoint, *arguments), message, tmp_path)


def test_size_that_is_not_a_multiple(run, tiny_checkpoint, tmp_path):
    result = run(tiny_checkpoint, "--size", "33", "--targets", "onnx")
    assert_failed(result, "height must be a positive multiple of 2, got 33", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.safetensors", b"", "bad.safetensors: not a readable safetensors file"),
        ("bad.pth", b"hello", "bad.pth: does not begin like a PyTorch checkpoint"),
        ("bad.pth", b"PK\x03\x04hello", "bad.pth: not a readable PyTorch checkpoint"),
        ("bad.txt", b"hello", "bad.txt: unknown suffix '.txt'; expected one of .safetensors, .pth"),
    ],
)
def test_bad_checkpoint(run, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert_failed(run(name, "--targets", "onnx"), message, tmp_path, left=[name])


def test_missing_checkpoint(run, tmp_path):
    assert_failed(run("gone.pth", "--targets", "onnx"), "no checkpoint at gone.pth: expected a .safetensors", tmp_path)


def test_existing_bundle(run, smallest_bundle, smallest_checkpoint, tmp_path):
    before = (smallest_bundle / "manifest.json").read_bytes()
    result = run(smallest_checkpoint, "-o", smallest_bundle, "--targets", "onnx")
    assert_failed(result, "holds a bundle; replace it with --overwrite", tmp_path, left=[smallest_bundle.name])
    assert (smallest_bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sm", "many"], "Invalid value for '--sm': 'many' is not a valid integer"),
        (["--attention-heads", "four"], "'four' is not a valid integer"),
        (["--sizes", "8"], "No such option"),
        ([], "Missing argument 'CHECKPOINT'"),
    ],
)
def test_flags_that_do_not_parse(run, tmp_path, arguments, message):
    result = run(*(["x.pth", *arguments] if arguments else []))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("traceback", ["0", "1"])
def test_traceback_only_where_asked_for(smallest_checkpoint, tmp_path, traceback):
    done = subprocess.run(
        [sys.executable, "-m", "saishiki.export", "gone.pth", "--targets", "onnx"],
        cwd=tmp_path,
        env=python_environment(SAISHIKI_TRACEBACK=traceback),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert ("Traceback" in done.stderr) == (traceback == "1")
    assert ("Error: no checkpoint at gone.pth" in done.stderr) or traceback == "1"


def test_help_of_the_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "saishiki.export", "--help"],
        cwd=tmp_path,
        env=python_environment(COLUMNS="100"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("Usage: export-engines [OPTIONS] CHECKPOINT\n")
    options = {parameter.opts[-1] for parameter in main.params if parameter.opts[-1].startswith("--")}
    assert [option for option in options if option not in done.stdout] == []
    assert done.stderr == ""


def test_missing_packages_name_the_extra():
    """The base install has the command, and no PyTorch."""
    code = "import sys; sys.modules['torch'] = None; from saishiki.export.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "Error: export-engines needs torch; install it with: pip install 'saishiki[export]'\n"


def test_command_of_one_precision_and_again(run, smallest_checkpoint, tmp_path):
    arguments = ["--targets", "onnx", "--size", "8", "--precision", "fp16", "--json"]
    result = run(smallest_checkpoint, *arguments)
    assert result.exit_code == 0, result.output
    manifest = json.loads(result.stdout)["manifest"]
    graphs = {name: list(module["graphs"]) for name, module in manifest["modules"].items()}
    assert graphs == {"time_projection": ["fp32"], "denoiser": ["fp16"]}
    certificate = manifest["certificate"]
    rows = [(row["module"], row["precision"]) for row in certificate["rows"]]
    assert set(rows) == {("time_projection", "fp32"), ("denoiser", "fp16")}
    assert {image["precision"] for image in certificate["images"]} == {"fp16"}
    again = run(smallest_checkpoint, *arguments, "--overwrite")
    assert again.exit_code == 0, again.output
    assert "nothing has changed since" in again.stderr
    manifest_again = json.loads(again.stdout)["manifest"]
    assert manifest_again["certificate"] == certificate
    # The fp16 rows are run though ONNX Runtime on a CPU would rather run fp32.
    verified = CliRunner().invoke(saishiki, ["verify", str(tmp_path / "smallest.saishiki"), "--json"])
    assert verified.exit_code == 0, verified.output
    run_rows = json.loads(verified.stdout)
    assert (len(run_rows["rows"]), len(run_rows["images"])) == (len(rows), len(certificate["images"]))


def test_command_of_an_unknown_precision(run, smallest_checkpoint, tmp_path):
    result = run(smallest_checkpoint, "--precision", "bf16")
    assert_failed(result, "--precision bf16: expected both, fp16, fp32", tmp_path)

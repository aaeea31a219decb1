import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from saishiki.runtime import cli
from saishiki.runtime.bench import command
from saishiki.runtime.bench.schema import json_from_report, read_report
from tests.bundles import copy_bundle, perturb_weights, rewrite_file


def run(*arguments):
    return CliRunner().invoke(cli.main, ["bench", *map(str, arguments)])


def assert_error(result, *messages, code=1):
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    for message in messages:
        assert message in result.stderr


@pytest.fixture
def measured(made, opened, monkeypatch):
    """Replaces the measurement by a report of fixed times of this bundle on this machine: ``measured(10.0, ...)``."""

    def measure(*image_ms, **fields):
        def report(bundle, chosen, plan, say):
            rows = [made.row("load", image_ms, sizes={})]
            environment = command.describe_environment()
            bundle_fields = {"bundle": command.identity_of(bundle), "quick": plan.quick, "skipped": chosen.skipped}
            return made.report(made.runner(image_ms, rows=rows), environment=environment, **bundle_fields | fields)

        monkeypatch.setattr(command, "run_bench", report)

    measure(10.0, 10.0, 10.0)
    return measure


@pytest.fixture
def not_measured(monkeypatch):
    monkeypatch.setattr(command, "run_bench", lambda *_: pytest.fail("measured before the arguments were checked"))


@pytest.mark.usefixtures("measured")
def test_bench_prints_a_table(tiny_bundle):
    result = run(tiny_bundle)
    assert result.exit_code == 0, result.output
    assert "onnxruntime:cpu:fp32: parity passed; weights 0.0 MB" in result.stdout
    assert "not measured: tensorrt" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["image", "1x32x32", "10", "steps", "3", "10", "10", "10", "0.0%"] in lines


@pytest.mark.usefixtures("measured")
def test_bench_writes_json_and_prints_it(tiny_bundle, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'saishiki[bench]'")
    output, plot = tmp_path / "results.json", tmp_path / "plot.svg"
    result = run(tiny_bundle, "--output", output, "--plot", plot, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(output.read_bytes())
    assert "parity passed" in result.stderr
    assert read_report(output).runners[0].rows[0].samples_ms == (10.0, 10.0, 10.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.svg", "results.json"]


def test_compare_passes_and_fails(tiny_bundle, measured, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    assert run(tiny_bundle, "--output", old).exit_code == 0
    result = run(tiny_bundle, "--compare", old)
    assert result.exit_code == 0, result.output
    assert "compared: 3 rows, 0 of them slower" in result.stdout
    measured(15.0, 15.0, 15.0)
    result = run(tiny_bundle, "--compare", old, "--output", new)
    assert_error(
        result, "slower: onnxruntime:cpu:fp32, load: 10 -> 15 ms, ratio 1.500", "slower: onnxruntime:cpu:fp32, image"
    )
    assert read_report(new).runners[0].rows[0].samples_ms == (15.0, 15.0, 15.0)
    assert run(tiny_bundle, "--compare", old, "--threshold", 1.6).exit_code == 0


def test_target(tiny_bundle, measured):
    measured(10.0, 20.0, 30.0)
    result = run(tiny_bundle, "--target-ms", 30)
    assert result.exit_code == 0, result.output
    assert "p99 of one image is 30 ms, the slowest of 6: within 30 ms" in result.stdout
    assert_error(run(tiny_bundle, "--target-ms", 29.5), "p99 of one image is 30 ms, the slowest of 6: over 29.5 ms")


def test_target_and_comparison_are_both_told(tiny_bundle, measured, tmp_path):
    old = tmp_path / "old.json"
    assert run(tiny_bundle, "--output", old).exit_code == 0
    measured(99.0, 99.0, 99.0)
    assert_error(run(tiny_bundle, "--compare", old, "--target-ms", 50), "over 50 ms", "slower: ")


@pytest.mark.usefixtures("not_measured")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backends", "dml"], "unknown backend 'dml'"),
        (["--backends", ""], "unknown runner ''"),
        (["--backends", "tensorrt-rtx:cpu"], "tensorrt-rtx needs a GPU"),
        (["--output", "none/a.json"], "none does not exist: create it before writing a.json"),
        (["--output", "."], "is a folder"),
        (["--plot", "a.pdf"], "has the suffix '.pdf'"),
        (["--compare", "none.json"], "none.json"),
        (["--compare", "text.json"], "text.json: not a result of saishiki bench"),
    ],
)
def test_wrong_options(tiny_bundle, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("no")
    assert_error(run(tiny_bundle, *options), message)
    assert [path.name for path in tmp_path.iterdir()] == ["text.json"]


@pytest.mark.usefixtures("not_measured")
@pytest.mark.parametrize(
    "options", [["--threshold", 1], ["--target-ms", 0], ["--target-ms", "fast"], ["--quick", "--target-ms", 5]]
)
def test_options_that_click_refuses(tiny_bundle, options):
    assert_error(run(tiny_bundle, *options), options[0], code=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, bundle=replace(r.bundle, checkpoint_sha256="x")), "has checkpoint 'x', this run"),
        (lambda r: replace(r, environment=replace(r.environment, processor="y")), "has processor 'y', this run"),
        (lambda r: replace(r, schema_version=9), "schema version 9, expected 1"),
        (lambda r: replace(r, quick=True), "has quick True, this run False"),
        (lambda r: replace(r, runners=()), "nothing to compare: the earlier result has no backend"),
    ],
    ids=["checkpoint", "processor", "schema", "quick", "runners"],
)
def test_a_result_that_must_not_be_compared_is_refused_at_once(
    tiny_bundle, measured, monkeypatch, tmp_path, change, message
):
    old = tmp_path / "old.json"
    assert run(tiny_bundle, "--output", old).exit_code == 0
    old.write_bytes(json_from_report(change(read_report(old))))
    monkeypatch.setattr(command, "run_bench", lambda *_: pytest.fail("measured in vain"))
    assert_error(run(tiny_bundle, "--compare", old), message)


def test_no_bundle(tmp_path):
    assert_error(run(tmp_path / "none"), "no such bundle")


def test_red_parity_is_exit_code_1_and_no_file(tiny_bundle, tmp_path):
    copy = copy_bundle(tiny_bundle, tmp_path)
    rewrite_file(copy, "onnx/denoiser.fp32.onnx.data", lambda content: perturb_weights(content, count=1 << 16))
    result = run(copy, "--quick", "--output", tmp_path / "results.json")
    assert_error(result, "so no speed is reported; see: saishiki verify")
    assert result.stdout == ""
    assert not (tmp_path / "results.json").exists()


def test_the_module_is_the_same_command(tiny_bundle, tmp_path):
    output = tmp_path / "results.json"
    arguments = [str(tiny_bundle), "--quick", "--backends", "onnxruntime:cpu", "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "saishiki.runtime.bench", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "note: a quick run" in done.stdout
    report = read_report(output)
    assert report.quick
    assert [runner.name for runner in report.runners] == ["onnxruntime:cpu:fp32"]


def test_the_commands_import_no_plotting_library():
    code = "import sys, saishiki.runtime.cli; print({'matplotlib', 'onnxruntime', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

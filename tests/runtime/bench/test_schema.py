import json
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from saishiki.runtime.bench import schema
from saishiki.runtime.bench.measure import Warmup
from saishiki.runtime.bench.schema import json_from_report, read_report
from saishiki.runtime.bench.summary import Summary
from saishiki.runtime.errors import SaishikiError

DOCUMENT = Path(__file__).parents[3] / "docs" / "benchmark_schema.md"
DESCRIBED = (
    schema.Report,
    schema.BundleIdentity,
    schema.Environment,
    schema.GpuState,
    schema.RunnerResult,
    schema.PlanResult,
    schema.PlannedOp,
    schema.Row,
    schema.Memory,
    schema.Stability,
    Warmup,
    Summary,
)


def written(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_a_report_is_read_as_it_was_written(made, tmp_path):
    warmup = Warmup(runs=6, change=None, tolerance=0.05, stable=False)
    row = made.row("module", [1.0, 2.0], part="denoiser", clock="device", warmup=warmup, images_per_s=3.0)
    report = made.report(made.runner(rows=(row,)), notes=("busy",))
    environment = replace(report.environment, gpus_before=(made.gpu(sm_clock_mhz=None),), gpus_after=(made.gpu(),))
    report = replace(report, environment=environment)
    (tmp_path / "a.json").write_bytes(json_from_report(report))
    assert read_report(tmp_path / "a.json") == report


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a result of saishiki bench"),
        (b"[1]", "not a result of saishiki bench .*expected `object`|Expected `object`"),
        (b"\xff\xfe", "not a result of saishiki bench"),
        (b"{}", "schema version None, expected 1; measure again with"),
        (b'{"schema_version": 2}', "schema version 2, expected 1"),
        (b'{"schema_version": 1}', "missing required field `started`"),
    ],
)
def test_a_file_that_is_no_report(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(SaishikiError, match=message):
        read_report(tmp_path / "a.json")


def test_a_wrong_field_is_named(made, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json_from_report(made.report()))
    written(path, seconds="long")
    with pytest.raises(SaishikiError, match=r"Expected `float`, got `str` - at `\$.seconds`"):
        read_report(path)


def test_the_document_names_every_field_and_subject_and_no_other():
    sections = dict(re.findall(r"^## `(\w+)`$(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL))
    for kind in DESCRIBED:
        assert is_dataclass(kind)
        named = re.findall(r"^\| `(\w+)` \|", sections[kind.__name__], re.MULTILINE)
        assert named == [field.name for field in fields(kind)], kind.__name__
    subjects = re.findall(r"^\| `([a-z ]+)` \|", sections["subject"], re.MULTILINE)
    assert subjects == list(schema.Subject.__args__)
    assert f"version {schema.SCHEMA_VERSION}" in DOCUMENT.read_text()


def test_a_row_says_what_it_is(made):
    assert str(made.row("module", [1.0], part="denoiser", sizes={"batch": 2})) == "module, denoiser, batch 2"
    assert str(made.row("load", [1.0], sizes={})) == "load"

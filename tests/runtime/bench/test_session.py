import json
from dataclasses import replace

import pytest

from saishiki.runtime.bench import session
from saishiki.runtime.bench.runners import Chosen, Runner
from saishiki.runtime.bench.schema import json_from_report, read_report
from saishiki.runtime.bench.session import identity_of, run_bench, stability_of
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BundleError
from tests.bundles import copy_bundle, perturb_weights, rewrite_file

CPU = Runner("onnxruntime", "cpu", "fp32")


@pytest.mark.usefixtures("one_thread")
def test_a_whole_run(opened, quick, tmp_path):
    said = []
    report = run_bench(opened, Chosen((CPU,), {"tensorrt:cuda": "no GPU"}, named=False), quick, said.append)
    path = tmp_path / "results.json"
    path.write_bytes(json_from_report(report))
    assert read_report(path) == report
    (runner,) = report.runners
    assert runner.parity.verdict == "passed"
    assert {row.module for row in runner.parity.rows} == {"time_projection", "denoiser"}
    found = [(row.subject, row.part) for row in runner.rows]
    assert found == [
        *((subject, "") for subject in ("image", "step", "around the steps", "step engine", "step host overhead")),
        ("image again", ""),
        *[("module", "time_projection")] * 3,
        *[("module", "denoiser")] * 2,
        ("batch", ""),
        ("callers", ""),
        ("load", ""),
        ("first image", ""),
        *(("cold start", part) for part in ("interpreter", "import", "load", "first image", "total")),
    ]
    assert all(len(row.samples_ms) == row.summary.n > 0 for row in runner.rows)
    assert [row.sizes for row in runner.rows if row.part == "time_projection"] == [{"steps": s} for s in (1, 10, 999)]
    stages = {row.part: row.samples_ms[0] for row in runner.rows if row.subject == "cold start"}
    assert stages.pop("total") == pytest.approx(sum(stages.values()))
    assert all(ms > 0 for ms in stages.values())
    assert runner.memory.peak_rss_bytes > runner.memory.weights_bytes > 1 << 20
    assert (runner.memory.activations_bytes, runner.memory.gpu_bytes) == (None, None)
    assert report.skipped == {"tensorrt:cuda": "no GPU"}
    assert report.bundle == identity_of(opened)
    assert report.environment.packages["onnxruntime"]
    assert said[0] == "onnxruntime:cpu:fp32: parity vectors"


def test_no_speed_where_parity_is_red(tiny_bundle, tmp_path, quick, monkeypatch):
    copy = copy_bundle(tiny_bundle, tmp_path)
    rewrite_file(copy, "onnx/denoiser.fp32.onnx.data", lambda content: perturb_weights(content, count=1 << 16))
    for name in ("cold_starts", "load_rows", "image_rows"):
        monkeypatch.setattr(session, name, lambda *_: pytest.fail("measured in spite of red parity"))
    with pytest.raises(
        BundleError, match="does not compute what its checkpoint computes on onnxruntime:cpu:fp32, so no"
    ):
        run_bench(Bundle.open(copy), Chosen((CPU,), {}, named=True), quick, lambda text: None)


def test_one_red_runner_stops_all_before_any_is_measured(tiny_bundle, tmp_path, quick, monkeypatch):
    copy = copy_bundle(tiny_bundle, tmp_path)
    rewrite_file(copy, "onnx/denoiser.fp32.onnx.data", lambda content: perturb_weights(content, count=1 << 16))
    monkeypatch.setattr(session, "_measured", lambda *_: pytest.fail("measured in spite of red parity"))
    said = []
    with pytest.raises(BundleError, match="measure the others with --backends"):
        run_bench(Bundle.open(copy), Chosen((replace(CPU, precision="fp16"), CPU), {}, named=True), quick, said.append)
    assert said == ["onnxruntime:cpu:fp16: parity vectors", "onnxruntime:cpu:fp32: parity vectors"]


@pytest.mark.parametrize(
    ("runner_ms", "named", "measured"),
    [(240_000, False, 2), (241_000, False, 1), (900_000, False, 1), (900_000, True, 2)],
)
def test_a_runner_that_would_end_late_is_left_out_unless_named(
    opened, quick, made, clock, monkeypatch, runner_ms, named, measured
):
    half = replace(CPU, precision="fp16")

    def measure(bundle, runner, *rest):
        clock.pass_ms(runner_ms)
        return replace(made.runner(), precision=runner.precision)

    monkeypatch.setattr(session, "_parity", lambda *_: None)
    monkeypatch.setattr(session, "_measured", measure)
    report = run_bench(opened, Chosen((CPU, half), {}, named=named), quick, lambda text: None, clock=clock)
    assert [runner.precision for runner in report.runners] == ["fp32", "fp16"][:measured]
    late = f"{runner_ms // 1000} s have passed; measure it alone with --backends onnxruntime:cpu:fp16"
    assert report.skipped == ({} if measured == 2 else {"onnxruntime:cpu:fp16": late})


@pytest.mark.parametrize(
    ("first", "again", "agree"),
    [
        ((10.0,) * 3, (10.1,) * 3, True),
        ((10.0,) * 3, (10.5,) * 3, False),
        ((9.0, 10.0, 11.0), (11.5,) * 3, False),
        ((9.0, 10.0, 11.0), (9.5, 11.5, 12.5), True),
        ((10.0,) * 3, (5.0,) * 3, False),
    ],
)
def test_stability_is_agreement_within_the_spread(made, first, again, agree):
    found = stability_of(made.row("image", first), made.row("image again", again))
    assert found.agree is agree
    assert found.difference == pytest.approx(abs(sorted(again)[1] / sorted(first)[1] - 1))


def test_identity_is_the_manifests_own_digest(opened, tiny_bundle):
    assert identity_of(opened).digest == json.loads((tiny_bundle / "manifest.json").read_bytes())["digest"]
    assert len(identity_of(opened).checkpoint_sha256) == 64

from dataclasses import replace

import pytest

from saishiki.runtime.bench.compare import compare
from saishiki.runtime.bench.session import stability_of
from saishiki.runtime.errors import SaishikiError

EXACT = (10.0, 10.0, 10.0)


def report_of(made, samples, subject="step", **fields):
    return made.report(made.runner(EXACT, rows=(made.row(subject, samples),)), **fields)


def regressions(old, new, **options):
    return [(change.row.split(", ")[1], round(change.ratio, 3)) for change in compare(old, new, **options).regressions]


@pytest.mark.parametrize(
    ("new", "slower"),
    [
        ((10.9, 10.9, 10.9), []),
        ((11.0, 11.0, 11.0), []),
        ((11.1, 11.1, 11.1), [("step", 1.11)]),
        ((5.0, 5.0, 5.0), []),
        ((11.0, 12.0, 13.0), [("step", 1.2)]),
        ((10.0, 12.0, 14.0), []),
        ((9.0, 12.0, 15.0), []),
    ],
    ids=["9 %", "10 %", "11 %", "faster", "past its spread", "within its spread, widened", "within its spread"],
)
def test_a_row_regresses_past_the_threshold_and_the_spread(made, new, slower):
    assert regressions(report_of(made, EXACT), report_of(made, new)) == slower


def test_the_old_runs_spread_counts_too(made):
    old, new = report_of(made, (8.0, 10.0, 12.0)), report_of(made, (12.0, 12.0, 12.0))
    assert regressions(old, new) == []
    assert regressions(report_of(made, EXACT), new) == [("step", 1.2)]


def test_what_a_run_says_about_its_own_stability_counts_too(made):
    old, new = report_of(made, EXACT), report_of(made, (13.0,) * 3)
    drift = stability_of(made.row("image", EXACT), made.row("image again", (14.0,) * 3))
    drifted = replace(new, runners=tuple(replace(runner, stability=drift) for runner in new.runners))
    assert regressions(old, new) == [("step", 1.3)]
    assert regressions(old, drifted) == []


def test_the_drift_of_whole_images_counts_for_every_row(made):
    """Three samples of one second, all of the machine's faster state; the run's images saw the other one, too."""
    old = made.report(made.runner([300.0] * 20 + [400.0] * 10, rows=(made.row("first image", (338.0, 335.0, 340.0)),)))
    new = made.report(made.runner([400.0] * 30, rows=(made.row("first image", (427.0, 423.0, 433.0)),)))
    assert regressions(old, new) == []
    assert compare(old, new).changes[-1].explained == pytest.approx(1 + 1 / 3, rel=0.01)
    steady = made.report(made.runner([300.0] * 30, rows=(made.row("first image", (338.0, 335.0, 340.0)),)))
    assert ("first image", 1.263) in regressions(steady, new)


@pytest.mark.parametrize(
    ("new", "notes"),
    [
        ((10.1,) * 3, ["3 of 3 rows agree, as far as the runs can tell"]),
        ((10.5,) * 3, ["2 of 3 rows agree", "they do not agree, within the threshold: onnx"]),
        ((8.0,) * 3, ["2 of 3 rows agree", "they do not agree, faster: onnx"]),
        ((12.0,) * 3, ["2 of 3 rows agree"]),
    ],
    ids=["agrees", "within the threshold", "faster", "slower"],
)
def test_rows_that_disagree_are_told(made, new, notes):
    found = compare(report_of(made, EXACT), report_of(made, new)).notes
    assert len(found) == len(notes)
    assert all(line.startswith(start) for line, start in zip(found, notes, strict=True))


def test_the_threshold_can_be_chosen(made):
    old, new = report_of(made, EXACT), report_of(made, (10.5, 10.5, 10.5))
    assert regressions(old, new, threshold=1.04) == [("step", 1.05)]
    assert regressions(old, new, threshold=1.06) == []


def test_the_spreads_floor_holds_below_a_tight_threshold(made):
    assert regressions(report_of(made, EXACT), report_of(made, (10.15,) * 3), threshold=1.001) == []


@pytest.mark.parametrize("threshold", [1.0, 0.9, float("nan")])
def test_a_threshold_that_is_none(made, threshold):
    with pytest.raises(ValueError, match="threshold must be above 1"):
        compare(made.report(), made.report(), threshold=threshold)


def test_a_change_names_row_times_and_ratio(made):
    (change,) = compare(report_of(made, EXACT), report_of(made, (20.0,) * 3)).regressions
    assert str(change) == (
        "onnxruntime:cpu:fp32, step, batch 1 height 32 steps 10 width 32: "
        "10 -> 20 ms, ratio 2.000 (spread explains 1.020)"
    )


def test_rows_that_cannot_be_judged_are_named(made):
    old, new = report_of(made, (10.0, 10.0)), report_of(made, (99.0, 99.0))
    result = compare(old, new)
    assert result.regressions == ()
    assert "step, batch 1 height 32 steps 10 width 32: fewer than 3 samples" in result.not_judged[0]
    negative = report_of(made, (-1.0, -1.0, -1.0))
    assert "no time" in compare(negative, report_of(made, EXACT)).not_judged[0]


def test_rows_of_one_file_alone_are_named(made):
    with_step, with_load = report_of(made, EXACT), report_of(made, EXACT, "load")
    result = compare(with_step, with_load)
    assert [line.split(", ")[1] + line[line.index(":", 25) :] for line in result.not_judged] == [
        "step: only in the old result",
        "load: only in the new result",
    ]


def test_other_sizes_are_other_rows(made):
    other = made.report(made.runner(rows=(made.row("step", (99.0,) * 3, sizes={"steps": 2}),)))
    assert compare(report_of(made, EXACT), other).regressions == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: replace(r, bundle=replace(r.bundle, checkpoint_sha256="x")),
            "checkpoint 'checkpoint-hash', this run 'x'",
        ),
        (
            lambda r: replace(r, environment=replace(r.environment, processor="y")),
            "processor 'a processor', this run 'y'",
        ),
        (lambda r: replace(r, bundle=replace(r.bundle, profiles=())), r"profiles \('batch 1',\), this run \(\)"),
        (lambda r: replace(r, environment=replace(r.environment, cores=64)), "cores 2, this run 64"),
        (lambda r: replace(r, quick=True), "quick False, this run True"),
        (
            lambda r: replace(r, runners=(replace(r.runners[0], device="cuda"),)),
            "has onnxruntime:cpu:fp32, this run onnxruntime:cuda",
        ),
        (lambda r: replace(r, runners=()), "this run ; choose with --backends"),
    ],
    ids=["checkpoint", "processor", "profiles", "cores", "quick", "runner", "none"],
)
def test_reports_that_must_not_be_compared(made, change, message):
    with pytest.raises(SaishikiError, match=message):
        compare(made.report(), change(made.report()))


def test_another_gpu_must_not_be_compared(made):
    environment = made.report().environment
    old = made.report(environment=replace(environment, gpus_before=(made.gpu(),)))
    new = made.report(environment=replace(environment, gpus_before=(made.gpu(name="H100"),)))
    with pytest.raises(SaishikiError, match=r"gpus \('H200',\), this run \('H100',\)"):
        compare(old, new)


def test_what_else_has_changed_is_told(made):
    new = made.report()
    environment = replace(new.environment, packages={"numpy": "3", "onnxruntime": "2"})
    new = replace(new, environment=environment, bundle=replace(new.bundle, digest="other"))
    assert compare(made.report(), new).notes == (
        "the checkpoint is the same, but was exported anew: the bundles differ",
        "numpy went from 2 to 3",
        "onnxruntime went from not installed to 2",
        "2 of 2 rows agree, as far as the runs can tell",
    )
    assert len(compare(made.report(), made.report()).notes) == 1

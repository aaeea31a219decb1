from dataclasses import replace

from saishiki.runtime.bench.measure import Warmup
from saishiki.runtime.bench.notes import QUICK_NOTE, notes_on
from saishiki.runtime.bench.session import stability_of


def test_nothing_to_note(made):
    assert notes_on(made.report()) == ()


def test_a_quick_run_is_noted_and_nothing_else(made):
    environment = replace(made.report().environment, load_average=50.0)
    assert notes_on(made.report(quick=True, environment=environment)) == (QUICK_NOTE,)


def test_a_busy_machine_is_noted(made):
    environment = made.report().environment
    assert notes_on(made.report(environment=replace(environment, load_average=0.5))) == ()
    (note,) = notes_on(made.report(environment=replace(environment, load_average=0.51)))
    assert note == "the machine was busy before the run: load average 0.51 on 2 cores"


def test_a_changed_power_limit_is_noted(made):
    environment = made.report().environment
    gpus = {"gpus_before": (made.gpu(),), "gpus_after": (made.gpu(power_limit_w=500.0),)}
    (note,) = notes_on(made.report(environment=replace(environment, **gpus)))
    assert note == "H200: the power limit went from 700.0 to 500.0 W"


def test_two_measurements_that_disagree_are_noted(made):
    runner = made.runner()
    stability = stability_of(made.row("image", (10.0,) * 3), made.row("image again", (12.0,) * 3))
    (note,) = notes_on(made.report(replace(runner, stability=stability)))
    assert note == (
        "onnxruntime:cpu:fp32: two measurements of one image differ by 20.0% (10 and 12 ms), "
        "their own spread allows 2.0%"
    )


def test_whole_images_that_lie_far_apart_are_noted(made):
    (note,) = notes_on(made.report(made.runner([300.0] * 40 + [350.0] * 10)))
    assert note.startswith("onnxruntime:cpu:fp32: whole images of this run lie 16.8% around their median, so the")
    assert notes_on(made.report(made.runner([300.0] * 40 + [320.0] * 10))) == ()


def test_a_warm_up_that_did_not_end_stable_is_noted_once(made):
    shaky = Warmup(runs=10, change=0.3, tolerance=0.05, stable=False)
    rows = [made.row(subject, (1.0,), warmup=shaky) for subject in ("module", "step", "step engine")]
    (note,) = notes_on(made.report(made.runner(rows=rows)))
    assert note.startswith("onnxruntime:cpu:fp32: the warm-up of 1 rows ended before they were stable: module, batch 1")
    steady = replace(shaky, change=0.01, stable=True)
    assert notes_on(made.report(made.runner(rows=[made.row("module", (1.0,), warmup=steady)]))) == ()

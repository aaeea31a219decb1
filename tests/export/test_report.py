import json
import math
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from saishiki.export.progress import STAGES
from saishiki.export.report import ProgressBar, json_of_export, observing, table_of_export


def printed(manifest):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table_of_export(manifest))
    return console.export_text()


def with_first_row(manifest, **changes):
    first, *others = manifest.certificate.rows
    certificate = replace(manifest.certificate, verdict="failed", rows=(replace(first, **changes), *others))
    return replace(manifest, certificate=certificate)


def test_table_shows_the_worst_row_of_a_graph(smallest_export):
    manifest = smallest_export.manifest
    worst = max(row.error for row in manifest.certificate.rows if row.module == "time_projection")
    line = next(line for line in printed(manifest).splitlines() if "time_projection" in line)
    assert f" {worst:.1e} " in line
    assert " 2.0e-05 " in line
    assert " passed " in line


def test_table_of_a_failed_certificate_with_nan(smallest_export):
    text = printed(with_first_row(smallest_export.manifest, error=math.nan, passed=False))
    line = next(line for line in text.splitlines() if "time_projection" in line)
    assert " nan " in line
    assert " failed " in line
    assert text.count("failed") == 1


def test_table_title_takes_file_names_literally(smallest_export):
    checkpoint = replace(smallest_export.manifest.checkpoint, name="my[/red]model[bold].pth")
    assert "checkpoint my[/red]model[bold].pth" in printed(replace(smallest_export.manifest, checkpoint=checkpoint))


def test_json_of_export_is_json_even_with_nan(smallest_export):
    manifest = with_first_row(smallest_export.manifest, error=math.nan, max_abs=math.inf, passed=False)

    def refuse(name):
        raise AssertionError(f"{name} in the JSON")

    text = json_of_export(manifest, bundle=Path("kept"), reused_engines=None)
    content = json.loads(text, parse_constant=refuse)
    assert (content["verdict"], content["bundle"], content["reused_engines"]) == ("failed", "kept", None)
    row = content["manifest"]["certificate"]["rows"][0]
    assert (row["error"], row["max_abs"], row["passed"]) == (None, None, False)


def test_observing_quietly_prints_notes_alone(capsys):
    with observing(quiet=True) as observer:
        observer.stage(STAGES[0])
        observer.note("four heads assumed")
    assert capsys.readouterr() == ("", "four heads assumed\n")


def test_observing_draws_on_stderr(capsys):
    with observing(quiet=False) as observer:
        observer.stage(STAGES[0])
        observer.note("[bold] is no markup here")
    out, err = capsys.readouterr()
    assert out == ""
    assert "[bold] is no markup here" in err


def test_progress_bar_adds_up_the_shares():
    progress = Progress(console=Console(file=open("/dev/null", "w")))  # noqa: SIM115
    bar = ProgressBar(progress)
    done = []
    for stage in STAGES:
        bar.stage(stage)
        done.append(progress.tasks[0].completed)
    assert done == [sum(stage.share for stage in STAGES[:i]) for i in range(len(STAGES))]
    assert progress.tasks[0].total == sum(stage.share for stage in STAGES) == 100
    assert progress.tasks[0].description == STAGES[-1].name


def test_progress_bar_moves_with_the_parts_of_a_stage():
    progress = Progress(console=Console(file=open("/dev/null", "w")))  # noqa: SIM115
    bar = ProgressBar(progress)
    bar.stage(STAGES[0])
    bar.stage(STAGES[1])
    bar.part("denoiser", 1, 4)
    assert progress.tasks[0].completed == STAGES[0].share + STAGES[1].share / 4
    assert progress.tasks[0].description == f"{STAGES[1].name}: denoiser"
    bar.stage(STAGES[2])
    assert progress.tasks[0].completed == STAGES[0].share + STAGES[1].share

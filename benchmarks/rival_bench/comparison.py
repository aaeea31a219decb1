"""The rows of the comparison: every entry that runs here, its errors against the published outputs, then its times."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from rival_bench.entries import PUBLISHED, Entry
from rival_bench.rounds import Effort, Samples, TimedRun, cuda_events, interleaved, wall_clock
from rival_bench.scene import SUBJECTS, Budget, Scene, System
from saishiki.runtime.bench.summary import Summary, shared_spread, summarize
from saishiki.runtime.signature import Array

Row = dict[str, Any]
Say = Callable[[str], None]


def silent(_: str) -> None:
    """A :data:`Say` that tells nobody."""


def compare(
    entries: Sequence[Entry], scene: Scene, device: str, efforts: Mapping[str, Effort], *, say: Say = silent
) -> list[Row]:
    """One row per entry, in order; the first must be the published computation, whose errors are raised.

    A row has ``unavailable``, or ``failed``, or ``parity`` and, unless that is red in any subject, times by subject.
    ``say`` is told what is done next, and how long it takes where that can be known.
    """
    rows: list[Row] = []
    first_s: dict[str, dict[str, float]] = {}
    systems: dict[str, System] = {}
    published: dict[str, Array] = {}
    for entry in entries:
        row: Row = {"name": entry.name, "precision": entry.precision, "onto": entry.onto}
        rows.append(row)
        if (reason := entry.why_not(scene.bundle, device)) is not None:
            row["unavailable"] = reason
            continue
        say(f"{entry.name}: opening, and checking one step and one image")
        begin = time.perf_counter()
        try:
            system = entry.open(scene, device)
            outputs, first_s[entry.name] = _first_outputs(system)
        except Exception as error:  # one rival that fails must not hide the others
            if entry is entries[0]:
                raise
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        row["first_s"] = round(time.perf_counter() - begin, 3)
        published = published or outputs
        budget = Budget.of(scene.bundle, entry.precision)
        row["parity"] = {subject: budget.judge(subject, outputs[subject], published[subject]) for subject in SUBJECTS}
        if not is_red(row):
            systems[entry.name] = system
    for subject in efforts:
        say(_announcement(subject, efforts[subject], [first_s[name][subject] for name in systems]))
        _add_times(rows, systems, subject, efforts[subject])
    return rows


def _first_outputs(system: System) -> tuple[dict[str, Array], dict[str, float]]:
    """What a system computes, by subject, and in how many seconds; the first holds whatever is compiled then."""
    outputs: dict[str, Array] = {}
    seconds: dict[str, float] = {}
    for subject in SUBJECTS:
        begin = time.perf_counter()
        outputs[subject] = array_from(system.run(subject)())
        seconds[subject] = time.perf_counter() - begin
    return outputs, seconds


def _announcement(subject: str, effort: Effort, first_s: Sequence[float]) -> str:
    round_s = sum(first_s)
    return (
        f"{subject}: {len(first_s)} rows by turns, {round_s:.3g} s a round by their first runs, "
        f"{effort.most_s(round_s):.0f} s in all at the most"
    )


def is_red(row: Row) -> bool:
    """Whether a row failed, or its outputs are not the published ones."""
    return "failed" in row or any(verdict["red"] for verdict in row.get("parity", {}).values())


def array_from(output: Any) -> Array:
    """An array or a torch tensor as an array of its own."""
    array: Array = np.array(output.detach().cpu().numpy() if hasattr(output, "detach") else output)
    return array


def _add_times(rows: list[Row], systems: Mapping[str, System], subject: str, effort: Effort) -> None:
    of = {row["name"]: row for row in rows}
    samples = interleaved({name: _timed(system, subject) for name, system in systems.items()}, effort)
    for name, measured in samples.items():
        of[name].setdefault("times", {})[subject] = _times(measured)
        of[name]["clock"] = "CUDA events" if systems[name].device == "cuda" else "wall"
    for row in rows:
        _add_ratios(row, of, subject)


def _timed(system: System, subject: str) -> TimedRun:
    run = system.run(subject)
    return cuda_events(run) if system.device == "cuda" else wall_clock(run)


def _times(measured: Samples) -> Row:
    summary = {name: round(value, 4) for name, value in asdict(summarize(measured.samples_ms)).items()}
    samples = [round(sample, 4) for sample in measured.samples_ms]
    return {**summary, "warmup": asdict(measured.warmup), "samples_ms": samples}


def _add_ratios(row: Row, of: Mapping[str, Row], subject: str) -> None:
    """How many times faster than the published row by the medians, and than the row it builds on, and if that is so."""
    own = _summary(row, subject)
    for key, other in (("over_published", PUBLISHED), ("over_previous", row["onto"])):
        theirs = _summary(of.get(other, {}), subject)
        if own and theirs:
            ratio = theirs.p50_ms / own.p50_ms
            row["times"][subject][key] = round(ratio, 3)
            row["times"][subject][f"{key}_clear"] = max(ratio, 1 / ratio) - 1 > shared_spread(own, theirs)


def _summary(row: Row, subject: str) -> Summary | None:
    times = row.get("times", {}).get(subject)
    return Summary(*(times[field.name] for field in fields(Summary))) if times else None

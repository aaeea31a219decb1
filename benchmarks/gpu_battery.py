"""``python benchmarks/gpu_battery.py -o FOLDER``: everything worth measuring on the first minutes with a GPU.

Made for a machine that is bare, offline and at hand for minutes only; ``benchmarks/README.md`` says how to get there.
Each part runs in a process of its own with a time limit; one that fails, hangs or crashes is recorded with its last
words and stops nothing. The parts come in the order of their worth, and none is begun that no longer fits ``--minutes``
(10). Everything lands in ``FOLDER/gpu_battery.json`` (default ``benchmarks/results/<gpu>``), saved after every row.

The same command again goes on where the last one ended: parts that are ``ok`` are left out, all others run again, with
the convolutions behind the last row they had. A file of another GPU, commit or source text is put aside first.
``--again PARTS`` measures done parts anew, ``--only PARTS`` leaves out the others, ``--list`` shows them with what they
answer and how they stand. ``--dry-run`` runs all of it at tiny sizes without a GPU, and times nothing. Exit status: 1
where a part failed, timed out or measured something wrong.

The file is one JSON object:

- ``schema`` (2), ``gpu``, ``commit``, ``sources`` (SHA-256 of what is measured), ``dry_run``: its identity;
  ``unix_time`` of the last save.
- ``decision``: the rule of ``executor_window/decision.py``: the terms, in ms per image or TFLOP/s, and ``verdicts``,
  each with ``what``, ``value`` (true, false, or null where a number is missing) and ``why``.
- ``parts``: a list of ``part``, ``seconds``, ``status`` (``ok``, ``failed`` with ``returncode`` and ``words``,
  ``timed out`` with ``limit_s`` and ``words``, ``skipped`` or ``not started`` with ``why``, ``running`` where the
  battery itself was killed), ``gpu_state_after`` (SM and memory clock, temperature, power, throttle reasons), and
  ``rows``. ``last_attempt`` is there where a later attempt ended with fewer rows than the one that is kept.
- a row: labels (``what``, ``precision``, shapes), ``error`` and ``budget`` against a more precise computation of the
  same random weights (seed 0), and times where the error is within the budget (``red: true`` and no time where not):
  ``p50_ms``, ``p90_ms``, ``p99_ms``, ``n``, ``samples_ms`` (or ``_us``: one launch among ``launches_timed_together`` in
  one CUDA graph), ``warmup`` runs before them and whether these were ``stable`` (two windows of ten within 2 %).
  ``unavailable`` says why a rival is not there. A dry run's rows have no times.

It never changes a setting of the GPU.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from battery.checkout import ROOT, commit_of_checkout, gpu_name, importable, sources_digest
from battery.part import Options, Row
from battery.parts import PARTS
from battery.process import end_with_parent, run_part
from battery.results import NAME, SCHEMA, Results, open_results, read_parts
from battery.run import Battery
from executor_window.decision import decide

__all__ = ["gpu_name", "importable", "main"]

DRY_RUN = Path(tempfile.gettempdir()) / "gpu_battery-dry-run"
HIDDEN = {"n", "warmup", "stable", "launches_timed_together"}


def print_result(result: Row) -> None:
    """A short table; the file has the rest."""
    why = result.get("why") or (result.get("words") or "").strip().splitlines()[-1:] or ""
    print(f"== {result['part']}: {result['status']} in {result['seconds']} s {why}", flush=True)
    for row in result["rows"]:
        shown = {key: value for key, value in row.items() if key not in HIDDEN and not key.startswith("samples_")}
        print("  ", ", ".join(f"{key} {_short(value)}" for key, value in shown.items()))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:200]


def print_decision(decision: Row) -> None:
    """The terms, and what follows from them."""
    print("== decision")
    for name, value in decision.items():
        if name != "verdicts":
            print(f"   {name}: {'not measured' if value is None else value}")
    for verdict in decision["verdicts"]:
        print(
            f"   {verdict['what']}: {'undecided' if verdict['value'] is None else verdict['value']} ({verdict['why']})"
        )


def print_list(path: Path, head: Row) -> None:
    """All parts in their order, and how they stand in a results file of the same identity."""
    parts, different = read_parts(path, head) if path.exists() else ({}, [])
    for name, part in PARTS.items():
        status = "-" if different else parts.get(name, {}).get("status", "-")
        print(f"{name:18s} {part.limit_s:4d} s  {status:12s} {part.answers}")


def exit_status(results: Results, names: list[str]) -> int:
    """1 where a part that was asked for failed or has a red row; what was skipped or not started is no failure."""
    asked_for = [results.parts[name] for name in names if name in results.parts]
    bad = any(part["status"] in ("failed", "timed out", "running") for part in asked_for)
    return int(bad or any(row.get("red") for part in asked_for for row in part["rows"]))


def names_of(given: str, parser: argparse.ArgumentParser) -> list[str]:
    """Names of parts, in the table's order."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if unknown := sorted(set(names) - PARTS.keys()):
        parser.error(f"unknown parts {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    return [name for name in PARTS if name in names]


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="also its engines, of AnimeDiffusion")
    parser.add_argument("--plans", type=Path, metavar="FILE", help="also these plans, made on a CPU by cpu_plans.py")
    parser.add_argument("--only", metavar="PARTS", help=f"some of: {','.join(PARTS)}")
    parser.add_argument("--again", metavar="PARTS", default="", help="measure these anew although they are done")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together; default 10")
    parser.add_argument("--list", action="store_true", help="the parts and how they stand")
    parser.add_argument("--commit", default=None, help="default: what git says of this checkout")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, no GPU, no times")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if not given.minutes > 0:
        parser.error(f"expected --minutes above 0, got {given.minutes}")
    for name in ("bundle", "plans"):
        path = getattr(given, name)
        if path is not None and not path.exists():
            parser.error(f"--{name} {path} does not exist")
    return given, parser


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    given, parser = parse(arguments)
    options = Options(given.dry_run, given.bundle, given.plans)
    if given.part:
        end_with_parent()
        run_part(PARTS[given.part], options, given.rows)
        return 0
    names = list(PARTS) if given.only is None else names_of(given.only, parser)
    again = names_of(given.again, parser)
    gpu = gpu_name()
    head = {
        "schema": SCHEMA,
        "gpu": gpu,
        "commit": given.commit or commit_of_checkout(),
        "sources": sources_digest(),
        "dry_run": given.dry_run,
    }
    if gpu == "none" and not (given.dry_run or given.list):
        parser.error("nvidia-smi finds no GPU here; --dry-run runs everything at tiny sizes without one")
    output = given.output or (DRY_RUN if given.dry_run else ROOT / "benchmarks" / "results" / gpu)
    if given.list:
        print_list(output / NAME, head)
        return 0
    results, found = open_results(output, head, decide)
    print(found, flush=True)
    told = {"--bundle": given.bundle, "--plans": given.plans}
    passed_on = [word for flag, path in told.items() if path for word in (flag, str(path))]
    battery = Battery(
        parts=PARTS,
        script=Path(__file__).resolve(),
        arguments=[*(["--dry-run"] if given.dry_run else []), *passed_on],
        options=options,
        again=frozenset(again),
        minutes=given.minutes,
        report=print_result,
    )
    battery.run(names, results)
    print_decision(decide(results.parts))
    ok = sum(results.is_done(name) for name in names)
    print(f"{results.path}: {ok} of {len(names)} parts ok")
    return exit_status(results, names)


if __name__ == "__main__":
    sys.exit(main())

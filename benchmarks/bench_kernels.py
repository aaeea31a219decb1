"""``python benchmarks/bench_kernels.py``: every op of ``saishiki.kernels`` on the shapes it is made for.

With a GPU: for each case the op's test at that very shape, then GB/s, TFLOP/s and the percentage of what the same GPU
just did in a copy and in a matrix product, beside the rivals (SDPA, flash_attn, the published form in eager torch and
under ``torch.compile``) and the targets that were set. A case whose test is red has no speed, and the exit status is 1.

Without one, or with ``--static``: counted operations and bytes, the least times they allow on an RTX 4090 and an H200,
and registers, shared memory, spills and occupancy of the kernels in ``runtime/cubins``. ``--readme`` also rewrites the
figures in ``kernels/README.md``.

``--dry-run`` runs the tests and everything else but the clock on tiny cases, in Triton's interpreter where there is no
GPU. The script runs offline from a plain checkout, where ``saishiki`` need not be installed.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_battery import gpu_name, importable
from reporting import describe_machine

Row = dict[str, Any]


def measure(*, dry_run: bool, only: str, save: Callable[[Row], None]) -> Row:
    """The rows of every case whose op or name contains ``only``, printed and saved as they come."""
    from kernel_bench.cases import CASES, TINY_CASES
    from kernel_bench.measure import measured_rows, open_bench
    from kernel_bench.tables import print_measured

    bench = open_bench(dry_run=dry_run)
    cases = [case for case in (TINY_CASES if dry_run else CASES) if only in f"{case.op}, {case.name}"]
    result: Row = {"measured": not dry_run, "gpu": gpu_name(), **bench.row, "cases": []}
    for row in measured_rows(cases, bench):
        print_measured(row)
        result["cases"].append(row)
        save(result)
    return result


def saver(output: Path | None, commit: str | None) -> Callable[[Row], None]:
    """Writes a result, and what it depends on, as JSON; does nothing without a file to write to."""
    if output is None:
        return lambda result: None
    environment = describe_machine() | ({"commit": commit} if commit else {})

    def save(result: Row) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"environment": environment, **result}, indent=1) + "\n")

    return save


def run(given: argparse.Namespace) -> int:
    """The exit status: 1 where a test is red."""
    save = saver(given.output, given.commit)
    if given.static:
        from kernel_bench.readme import rewrite_readme
        from kernel_bench.static import static_report
        from kernel_bench.tables import print_static

        result = static_report()
        print_static(result)
        save(result)
        if given.readme:
            rewrite_readme(result)
        return 0
    from kernel_bench.measure import red_rows

    red = red_rows(measure(dry_run=given.dry_run, only=given.only, save=save)["cases"])
    for name in red:
        print(f"red: {name}", file=sys.stderr)
    return 1 if red else 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON")
    parser.add_argument("--static", action="store_true", help="no GPU, even where there is one")
    parser.add_argument("--readme", action="store_true", help="with the static report: rewrite kernels/README.md")
    parser.add_argument("--dry-run", action="store_true", help="tiny cases, no times")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose op or name contains this")
    parser.add_argument("--commit", help="default: what git says of this checkout")
    given = parser.parse_args()
    given.static = given.static or (gpu_name() == "none" and not given.dry_run)
    if given.readme and not given.static:
        parser.error("the README shows the static report: add --static")
    if given.dry_run and gpu_name() == "none":
        os.environ["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        path = importable(Path(folder)).get("PYTHONPATH", "")
        sys.path[:0] = [entry for entry in path.split(os.pathsep) if entry]
        status = run(given)
    sys.exit(status)


if __name__ == "__main__":
    main()

"""What one denoising step of ColorizeDiffusion computes, before and after each hoist: counted, not timed.

    python benchmarks/hoists.py [--output benchmarks/results/cpu/hoists.json] [--only v2/full] [--sizes 512]

Traces the full-size denoiser without its weights, once for every saving and size, and counts operations and bytes of
the ONNX graphs; half an hour on two cores that have nothing else to do. ``--output`` is written after every case and
keeps those that it holds already, so that the rest can be counted later. ``--readme RESULT`` counts nothing: it puts
the figures of such a file into the project's README.

Guidance is that of the reference: two rows per picture. Columns: GFLOP of convolutions, matrix products and attention;
GB that an engine in fp16 must move if each layer reads and writes once (see ``graph_roofline/layers.py``); and what of
the published step's GFLOP is left. Rows, each on top of those before it:

"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hoist_work.counting import eager_gflop, give_weights, step_work
from hoist_work.ladder import RUNGS, ladder
from hoist_work.readme import rewrite_readme
from reporting import describe_machine

from saishiki.models.colorizediffusion import CONFIGS, ColorizeDiffusionConfig, UNet
from saishiki.runtime.pipelines.colorizediffusion import Mode

__doc__ += "\n".join(f"    {name:10} {what}" for name, what in RUNGS.items())

SCHEMA = "saishiki.hoists/1"
SIZES_PX = (512, 768)
CASES: tuple[tuple[str, Mode], ...] = (
    ("v2", "full"),
    ("v2", "vanilla"),
    ("v1.5", "background"),
    ("v1", "background"),
    ("v1", "vanilla"),
)
"""Without a mask v1.5 is v1."""

Row = dict[str, Any]


def count_case(config: ColorizeDiffusionConfig, mode: Mode, size_px: int) -> list[Row]:
    """One row per rung, at reference guidance and batch 1; no bytes in the first, which is no graph."""
    with torch.device("meta"):
        unet = UNet(config).eval()
    sizes = {"batch": 1, "height": size_px, "width": size_px}
    _, first = next(ladder(unet, mode, "reference"))
    published = eager_gflop(first, sizes)
    rows = [_row("published", {"matrix_gflop": published}, published)]
    give_weights(unet)
    rows += (
        _row(rung, asdict(step_work(module, sizes)), published) for rung, module in ladder(unet, mode, "reference")
    )
    return rows


def _row(rung: str, counted: Mapping[str, float], published: float) -> Row:
    left = round(100 * counted["matrix_gflop"] / published, 3)
    figures = {name: round(value, 4) for name, value in counted.items()}
    return {"rung": rung, "saves": RUNGS[rung], **figures, "percent_of_published": left}


def print_case(name: str, size_px: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of one generation, mode and size."""
    print(f"\n{name}, {size_px}x{size_px}, reference guidance{'GFLOP':>18}{'GB':>9}{'% left':>9}")
    for row in rows:
        gb = f"{row['fused_mb'] / 1e3:9.2f}" if "fused_mb" in row else " " * 9
        figures = f"{row['matrix_gflop']:12.1f}{gb}{row['percent_of_published']:9.2f}"
        print(f"  {row['rung']:10} {row['saves']:50}{figures}", flush=True)


def run(given: argparse.Namespace) -> None:
    """Counts what is asked for, printing and writing as it goes."""
    for generation, mode in given.only or CASES:
        for size_px in given.sizes:
            print(f"counting {generation} {mode} at {size_px}", file=sys.stderr, flush=True)
            rows = count_case(CONFIGS[generation], mode, size_px)
            print_case(f"{generation} {mode}", size_px, rows)
            case = {"generation": generation, "mode": mode, "size_px": size_px, "rows": rows}
            if given.output:
                add_case(given.output, case)


def add_case(path: Path, case: Row) -> None:
    """Writes a result with this case besides those that it has; one of the same name is replaced.

    Raises ``ValueError`` where the file holds something else.
    """
    cases = []
    if path.is_file():
        held = json.loads(path.read_text())
        if held.get("schema") != SCHEMA:
            raise ValueError(f"{path}: expected a result of {SCHEMA}, got {held.get('schema')!r}; give another file")
        cases = [other for other in held["cases"] if name_of(other) != name_of(case)]
    cases = sorted([*cases, {**case, "environment": describe_machine()}], key=name_of)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"schema": SCHEMA, "guidance": "reference", "batch": 1, "cases": cases}
    path.write_text(json.dumps(result, indent=1) + "\n")


def name_of(case: Row) -> tuple[str, str, int]:
    """Generation, mode and size."""
    return case["generation"], case["mode"], case["size_px"]


def parse_case(text: str) -> tuple[str, Mode]:
    """``v2/full`` as one of :data:`CASES`; raises ``argparse.ArgumentTypeError`` for others."""
    by_name = {"/".join(case): case for case in CASES}
    if text not in by_name:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(by_name)}, got {text}")
    return by_name[text]


def main(arguments: Sequence[str] | None = None) -> None:
    """Counts, prints, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=parse_case, action="append", metavar="GENERATION/MODE")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES_PX, metavar="PX")
    parser.add_argument("--output", type=Path, metavar="FILE")
    parser.add_argument("--readme", type=Path, metavar="RESULT", help="put its figures into the README, and end")
    given = parser.parse_args(arguments)
    if given.readme:
        rewrite_readme(json.loads(given.readme.read_text()))
        return
    if wrong := [size for size in given.sizes if size < 64 or size % 64]:
        parser.error(f"expected sizes that are multiples of 64, got {wrong[0]}")
    run(given)


if __name__ == "__main__":
    main()

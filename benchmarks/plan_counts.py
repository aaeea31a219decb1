"""What the plans of whole networks amount to: launches, operations, bytes, memory, modelled time.

    python benchmarks/plan_counts.py BUNDLE... [--sizes 512 768] [--batches 1 2] [--output RESULT.json]
    python benchmarks/plan_counts.py --denoisers v1 v1.5 v2 [--output RESULT.json]

Counted, not measured. Every module's graph is lowered anew by the code at hand, so a bundle can be counted again after
a change; any target will do, and weights are not read. Every launch is looked for among the kernels that are shipped,
for every GPU that these are compiled for; operations without one are listed as ``without_kernel``. ``--output`` keeps
what the file holds already. ``--denoisers`` needs no bundle: it traces every denoiser of a generation of
ColorizeDiffusion, all modes, with and without merging, at the published size and 512 px, without weights; a
minute each. ``--docs RESULT`` counts nothing: it puts the figures of such a file into ``docs/plans.md``.

Columns: launches, of which those that are made once per picture; GFLOP; MB that launches read and write; MB of the
arena and what no arena can be smaller than; milliseconds by ``runtime/plan/time_model.py``.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plan_work.counting import Row, count
from plan_work.denoisers import count_denoisers
from plan_work.docs import denoisers_table, families_table, rewrite_docs
from reporting import describe_machine

from saishiki.export.plan import lower_graph
from saishiki.models.colorizediffusion import CONFIGS
from saishiki.models.families import FAMILIES
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.signature import Profile, Signature, Sizes

SCHEMA = "saishiki.plan_counts/1"
SIZES_PX, BATCHES = (512, 768), (1, 2)
STEPS = 20
DENOISER_PX = 512


def count_bundle(bundle: Bundle, sides_px: Sequence[int], batches: Sequence[int]) -> Iterator[Row]:
    """A row for each module at each of its sizes, as it is counted."""
    for name, module in bundle.manifest.modules.items():
        precision = module.closest("fp16")
        lowered = lower_graph(bundle.path / module.graphs[precision].graph.path, module.signature, precision)
        for side_px, sizes in sizes_of(bundle.manifest.family, module.signature, sides_px, batches):
            counted = count(lowered.plan, module.signature, sizes)
            yield {"module": name, "precision": precision, "side_px": side_px, **counted}


def sizes_of(
    family: str, signature: Signature, sides_px: Sequence[int], batches: Sequence[int]
) -> tuple[tuple[int | None, Sizes], ...]:
    """The distinct sizes of a module for squares of these sides and these batches; with the side, if it matters."""
    (complete,) = (known.complete for known in FAMILIES if known.name == family)
    matters = not set(signature.symbols).isdisjoint(("height", "positions"))
    found: list[tuple[int | None, Sizes]] = []
    for side in sides_px:
        for batch in batches:
            given = {"batch": batch, "height": side, "width": side, "steps": STEPS}
            every = complete(Profile(given, given, given)).opt
            own = (side if matters else None, {symbol: every[symbol] for symbol in signature.symbols})
            found += [] if own in found else [own]
    return tuple(found)


def add_rows(path: Path, kind: str, name: str, rows: Sequence[Row]) -> None:
    """Writes a result with these rows besides those that it has; ones of the same kind and name are replaced.

    Args:
        kind: ``families``, all modules of a bundle, or ``denoisers``, those of a generation.

    Raises ``ValueError`` where the file holds something else.
    """
    held: dict[str, Any] = {}
    if path.is_file():
        held = json.loads(path.read_text())
        if held.get("schema") != SCHEMA:
            raise ValueError(f"{path}: expected a result of {SCHEMA}, got {held.get('schema')!r}; give another file")
    named = {**held.get(kind, {}), name: {"environment": describe_machine(), "rows": list(rows)}}
    held |= {"schema": SCHEMA, kind: dict(sorted(named.items()))}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(held, indent=1) + "\n")


def run(given: argparse.Namespace) -> None:
    """Counts each bundle, and the denoisers of each generation, prints their tables, and writes them where asked to."""
    for path in given.bundles:
        # Nothing but graphs is read, and counts are about nothing that a certificate could find wrong.
        bundle = Bundle.open(path, allow_failed=True, check_hashes=False)
        family = bundle.manifest.family
        rows = list(count_bundle(bundle, given.sizes, given.batches))
        print(families_table({family: {"rows": rows}}), flush=True)
        if given.output:
            add_rows(given.output, "families", family, rows)
    sizes = {"batch": 1, "height": DENOISER_PX, "width": DENOISER_PX}
    for generation in given.denoisers:
        rows = list(count_denoisers(CONFIGS[generation], sizes))
        print(denoisers_table({generation: {"rows": rows}}), flush=True)
        if given.output:
            add_rows(given.output, "denoisers", generation, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Counts, prints, and writes JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE")
    parser.add_argument("--denoisers", nargs="+", choices=list(CONFIGS), default=[], metavar="GENERATION")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES_PX, metavar="PX")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, metavar="B")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON")
    parser.add_argument("--docs", type=Path, metavar="RESULT", help="put its figures into docs/plans.md, and end")
    given = parser.parse_args(arguments)
    if given.docs:
        result: Mapping[str, Any] = json.loads(given.docs.read_text())
        rewrite_docs(result)
        return
    if not given.bundles and not given.denoisers:
        parser.error("expected a BUNDLE, --denoisers GENERATION, or --docs RESULT")
    run(given)


if __name__ == "__main__":
    main()

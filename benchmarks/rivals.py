"""AnimeDiffusion as published, every way to run it faster that this machine has, and the floor of its layers.

    python benchmarks/rivals.py [--full-size] [--output results.json] [--plot results.svg]

Runs the demo checkpoint at 64x64 in a few minutes on two cores; ``--full-size`` takes the published size with random
weights at 256x256, for about twenty minutes. ``--bundle`` takes a bundle of the same checkpoint instead of exporting
it. ``--quick`` is for seeing that all of it works: its times are of a few runs. What is done next, and how long it may
take, is told on stderr; however slow the machine, each subject's rounds end (``Effort.limit_s``).

Every row first has to match the published computation in PyTorch eager fp32, one step and a whole image, within the
budgets of the bundle's certificate; where it does not, it is red and has no times. Then all run by turns: see
``rival_bench/rounds.py`` for the order, and for when the warm-up ends. The exit status is 1 where a row is red or
failed, and 2 for bad input, with nothing written.

The result, as JSON::

    schema        "saishiki.rivals/1"
    environment   commit, processor, cores and versions; threads of torch; state: clocks, load and GPUs before the runs
    checkpoint, weights, size_px, steps, eta, batch, device
    rows[]        name, precision, and onto: the row to which it adds one saving, or null
      unavailable   why it does not run here, or
      failed        the error it ended with, or
      first_s       opening it and its first step and image, compilation included
      parity        by subject: error and budget (step, relative L2) or psnr_db and least_psnr_db (image), and red
      clock         "wall" or "CUDA events"
      times         by subject, "step" and "image": n, p50_ms, p90_ms, p99_ms, min_ms, max_ms, spread, samples_ms,
                    warmup (runs, change of the median over the last window, tolerance, stable), and how many times as
                    fast as the published row and as the row it builds on, over_published and over_previous, each
                    with _clear: whether the medians lie farther apart than the spreads of both rows together
    roofline      of the denoiser at these sizes: matrix_gflop, vector_gflop, fused_mb, unfused_mb, layers
      ceilings      copy_gb_per_s of the largest copy and matrix_product_gflop_per_s of the fastest_product, measured
                    on this machine; copies_gb_per_s and products_gflop_per_s have all that were tried
      floor_ms      fused floor (see graph_roofline/layers.py); unfused_floor_ms: every node by itself
      step_percent  the floor over the p50 of one step, by row, for the rows in the graph's precision
      layer_rows[]  layer, op, kernel, shape, ops, gflop, mb, floor_us, bound, us, floor_percent
      farthest[]    the ten layers that lose most time to their floor, in ONNX Runtime on the CPU
      below_floor   the layers that took less than their floor by more than profiled_spread: the ceilings are none
      profiled_run_ms, profiled_spread    of the runs these times are from
      kernels_ms, other_ms    the sum of these times, and of it what belongs to no layer
      projections[] gpu, kind, peaks, floors of the fp16 graph per step and per image; nothing of it was measured
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from export_full_size import SIZE as FULL_SIZE
from export_full_size import random_network
from graph_roofline.ceilings import higher, measured_ceilings
from graph_roofline.report import roofline_report
from reporting import describe_machine
from rival_bench.comparison import Say, compare, is_red, silent
from rival_bench.entries import ENTRIES, PUBLISHED, Entry
from rival_bench.plot import check_plot, write_plot
from rival_bench.rounds import Effort
from rival_bench.scene import ETA, IMAGE, STEP, Scene
from rival_bench.torch_systems import prepare_torch
from safetensors.torch import save_file

from saishiki.export import ExportRequest, export_bundle, parse_profiles
from saishiki.export.engines import CUDA
from saishiki.models import LoadOptions, read_checkpoint, recognize
from saishiki.models.animediffusion.family import LoadedAnimeDiffusion
from saishiki.runtime.bench.environment import describe_environment
from saishiki.runtime.bench.files import check_folder, write_whole
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import SaishikiError
from saishiki.runtime.schedule import DiffusionSchedule, ddim_schedule

SCHEMA = "saishiki.rivals/1"
DEMO = Path(__file__).parents[1] / "examples" / "faces" / "faces.safetensors"
DEMO_SIZE, STEPS = 64, 10

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds by subject, profiled runs, and the sizes of the CPU's ceilings."""

    efforts: Mapping[str, Effort]
    profile_runs: int
    copy_bytes: int
    product_size: int


DEMO_PLAN = Plan({STEP: Effort(10, 100, 20), IMAGE: Effort(5, 30, 40)}, 20, 256 << 20, 2048)
FULL_PLAN = replace(
    DEMO_PLAN, efforts={STEP: Effort(5, 30, 60, limit_s=120), IMAGE: Effort(3, 10, 60, limit_s=400)}, profile_runs=5
)
QUICK_PLAN = Plan({STEP: Effort(1, 2, 0), IMAGE: Effort(1, 1, 0)}, 1, 1 << 20, 128)


def open_scene(checkpoint: Path, bundle: Path | None, folder: Path, *, size_px: int, steps: int) -> Scene:
    """A checkpoint and its bundle, exported into ``folder`` where none is given; with plans where there is a GPU.

    Raises ``ValueError`` where a given bundle is of another checkpoint or another size, or the steps are out of range.
    """
    source = read_checkpoint(checkpoint)
    options = LoadOptions()
    model = recognize(source).load(source, options)
    if not isinstance(model, LoadedAnimeDiffusion):
        raise ValueError(
            f"{checkpoint}: expected an AnimeDiffusion checkpoint, whose published computation is known here"
        )
    ddim_schedule(DiffusionSchedule(dict(model.schedule)), steps=steps, eta=ETA)
    if bundle is None:
        profiles = parse_profiles([str(size_px)], "1")
        targets = (CUDA,) if torch.cuda.is_available() else ()
        request = ExportRequest(
            checkpoint, folder / "rivals.saishiki", targets=targets, profiles=profiles, load=options
        )
        bundle = export_bundle(request).bundle
    opened = Bundle.open(bundle)
    if opened.manifest.checkpoint.sha256 != source.sha256:
        raise ValueError(f"{bundle} is of the checkpoint {opened.manifest.checkpoint.name}, not of {checkpoint.name}")
    sizes = {"batch": 1, "height": size_px, "width": size_px}
    if not any(profile.holds(sizes) for profile in opened.manifest.profiles):
        raise ValueError(f"{bundle} has no profile that holds {size_px}x{size_px}; export it with --size {size_px}")
    return Scene(model, opened, size_px, steps)


def measure(scene: Scene, entries: Sequence[Entry], plan: Plan, *, say: Say = silent) -> Row:
    """Everything but what is known beforehand: the rows, then the roofline; ``say`` is told what is done next."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prepare_torch()
    state = asdict(describe_environment())
    before = measured_ceilings(device, nbytes=plan.copy_bytes, size=plan.product_size)
    rows = compare(entries, scene, device, plan.efforts, say=say)
    say("roofline: ceilings of this machine, and the layers' times")
    ceilings = higher(before, measured_ceilings(device, nbytes=plan.copy_bytes, size=plan.product_size))
    sizes = {"batch": 1, "height": scene.size_px, "width": scene.size_px}
    roofline = roofline_report(scene.bundle, sizes, device, ceilings, steps=scene.steps, runs=plan.profile_runs)
    roofline["step_percent"] = _step_percent(rows, roofline)
    return {
        "schema": SCHEMA,
        "environment": {**describe_machine(), "torch_threads": torch.get_num_threads(), "state": state},
        "checkpoint": scene.bundle.manifest.checkpoint.name,
        "weights": scene.bundle.manifest.variant,
        "size_px": scene.size_px,
        "steps": scene.steps,
        "eta": ETA,
        "batch": 1,
        "device": device,
        "rows": rows,
        "roofline": roofline,
    }


def _step_percent(rows: Sequence[Row], roofline: Row) -> dict[str, float]:
    timed = [row for row in rows if STEP in row.get("times", {}) and row["precision"] == roofline["precision"]]
    return {row["name"]: round(100 * roofline["floor_ms"] / row["times"][STEP]["p50_ms"], 1) for row in timed}


def print_result(result: Row) -> None:
    """A table of the rows, the ten layers, and the projections."""
    print(f"{'row':45} {'step p50':>10} {'image p50':>10} {'p99':>10} {'x published':>11}")
    for row in result["rows"]:
        reason = (
            row.get("unavailable") or row.get("failed") or ("red: " + json.dumps(row["parity"]) if is_red(row) else "")
        )
        if reason:
            print(f"{row['name']:45} {reason}")
            continue
        step, image = row["times"][STEP], row["times"][IMAGE]
        figures = (
            f"{step['p50_ms']:10.2f} {image['p50_ms']:10.1f} {image['p99_ms']:10.1f} {image['over_published']:11.2f}"
        )
        doubts = [] if image["over_published_clear"] or row["name"] == PUBLISHED else ["within the spread"]
        doubts += [] if image["warmup"]["stable"] else ["never stood still"]
        print(f"{row['name']:45} {figures}" + (f"  ({', '.join(doubts)})" if doubts else ""))
    roofline = result["roofline"]
    print(
        f"\none step: {roofline['matrix_gflop']} GFLOP, {roofline['fused_mb']} MB, floor {roofline['floor_ms']:.3g} ms"
    )
    by_name = {row["layer"]: row for row in roofline["layer_rows"]}
    for name in roofline.get("farthest", ()):
        row = by_name[name]
        shape = "x".join(map(str, row["shape"]))
        print(f"  {row['op']:20} {shape:16} {row['us']:9.0f} us, {row['floor_percent']} % of its {row['bound']} floor")
    ceilings = roofline["ceilings"]
    print(f"ceiling: {ceilings['matrix_product_gflop_per_s']:g} GFLOP/s ({ceilings['fastest_product']})")
    if below := roofline.get("below_floor"):
        print(
            f"  {len(below)} layers took less than their floor, past the spread: the ceilings are none on this machine"
        )
    for row in roofline["projections"]:
        floors = f"{row['image_floor_ms']:.3g} ms, unfused {row['image_unfused_floor_ms']:.3g} ms"
        print(f"{row['gpu']}, {row['steps']} steps, fp16: {floors} ({row['kind']})")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(given: argparse.Namespace, entries: Sequence[Entry] = ENTRIES) -> int:
    """Measures and writes what is asked for; the exit status is 1 where a row is red."""
    for path in filter(None, (given.output, given.plot)):
        check_folder(path)
    if given.plot:
        check_plot(given.plot)
    if given.full_size and given.size:
        raise ValueError(f"a full-size run is {FULL_SIZE}x{FULL_SIZE}, got --size {given.size}; leave one of them out")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, size_px = given.checkpoint or DEMO, given.size or DEMO_SIZE
        if given.full_size:
            checkpoint, size_px = folder / "random.safetensors", FULL_SIZE
            save_file(random_network().state_dict(), checkpoint)
        if given.bundle is None:
            _say(f"exporting at {size_px}x{size_px}; --bundle takes one that exists")
        scene = open_scene(checkpoint, given.bundle, folder, size_px=size_px, steps=given.steps)
        plan = QUICK_PLAN if given.quick else FULL_PLAN if given.full_size else DEMO_PLAN
        result = measure(scene, entries, plan, say=_say)
    print_result(result)
    if given.output:
        write_whole(given.output, (json.dumps(result, indent=1) + "\n").encode())
    if given.plot:
        write_plot(result, given.plot)
    return int(any(is_red(row) for row in result["rows"]))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    commands = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = commands.add_mutually_exclusive_group()
    source.add_argument("--full-size", action="store_true", help="random weights of the published size, 256x256")
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: the demo checkpoint")
    commands.add_argument(
        "--size", type=int, metavar="PX", help=f"default: {DEMO_SIZE}; a full-size run is {FULL_SIZE}"
    )
    commands.add_argument("--steps", type=int, default=STEPS, metavar="N")
    commands.add_argument("--bundle", type=Path, metavar="DIR", help="a bundle of the checkpoint; default: export it")
    commands.add_argument("--output", type=Path, metavar="FILE", help="JSON")
    commands.add_argument("--plot", type=Path, metavar="FILE", help="SVG or PNG")
    commands.add_argument("--quick", action="store_true", help="a few runs of everything")
    return commands


def main() -> None:
    """Runs the command."""
    commands = parser()
    try:
        status = run(commands.parse_args())
    except (SaishikiError, ValueError, ImportError, OSError) as error:
        commands.exit(2, f"{commands.prog}: {error}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()

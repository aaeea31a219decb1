"""The command lines of the runtime: ``colorize``, and ``saishiki`` with its commands."""

import platform
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from saishiki.runtime.backends import BACKENDS, ON_CPU, diagnose, open_backend
from saishiki.runtime.backends.cubins import read_cubin_index
from saishiki.runtime.backends.plan_on_gpu import plan_on_gpu
from saishiki.runtime.bench.command import bench
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.cli_errors import exit_on_error
from saishiki.runtime.cli_options import Size, family_flags, options_given
from saishiki.runtime.colorizer import Colorizer
from saishiki.runtime.images import check_target, write_image
from saishiki.runtime.manifest import ImageParity, Manifest, ParityRow, Precision, json_from_manifest
from saishiki.runtime.parity import measure
from saishiki.runtime.plan import Plan
from saishiki.runtime.plan.ops import OpBackend
from saishiki.runtime.plan_tables import ALL, measured_tables, plan_tables

_BACKEND = click.option("--backend", default="auto", show_default=True, help=f"auto, {', '.join(BACKENDS)}.")
_DEVICE = click.option("--device", help="cpu, cuda or cuda:N [what the backend is for].")
_PRECISION = click.option("--precision", type=click.Choice(["fp32", "fp16"]), help="[what the backend runs best].")
_BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
_SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.command(context_settings=_SETTINGS)
@_BUNDLE
@click.argument("sketch", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A .png, .webp or .jpg file.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--size", type=Size(), help="Working size, 512 or height x width [what the bundle is tuned for].")
@family_flags
@_BACKEND
@_DEVICE
@_PRECISION
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.version_option(package_name="saishiki")
@exit_on_error
def colorize(
    bundle: Path,
    sketch: Path,
    reference: Path | None,
    output: Path,
    seed: int,
    size: tuple[int, int] | None,
    backend: str,
    device: str | None,
    precision: Precision | None,
    quiet: bool,
    **flags: Any,
) -> None:
    """Colour SKETCH after REFERENCE with the engines of BUNDLE.

    An option in brackets is that family's alone; ColorizeDiffusion also colours without a reference.
    """
    check_target(output)
    opened = Bundle.open(bundle)
    options = options_given(opened.manifest.family, flags)
    with (
        Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar,
        Colorizer.load(opened, backend=backend, device=device, precision=precision) as colorizer,
    ):
        task = bar.add_task(f"{colorizer.backend.name} {colorizer.precision}", total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        image = colorizer(sketch, reference, seed=seed, size=size, progress=report, **options)
    write_image(output, np.asarray(image))
    click.echo(output)


@click.group(context_settings=_SETTINGS)
@click.version_option(package_name="saishiki")
def main() -> None:
    """Look at bundles and at what can run them here."""


main.add_command(colorize)
main.add_command(bench)


@main.command(context_settings=_SETTINGS)
@_BUNDLE
@_BACKEND
@_DEVICE
@_PRECISION
@click.option("--json", "as_json", is_flag=True, help="Print the measured certificate as JSON.")
@exit_on_error
def verify(bundle: Path, backend: str, device: str | None, precision: Precision | None, as_json: bool) -> None:
    """Run BUNDLE's stored parity vectors on this machine; exit code 1 where it does not compute what it should."""
    opened = Bundle.open(bundle, allow_failed=True)
    with closing(open_backend(opened, backend, device)) as runner:
        chosen = precision or runner.default_precision
        table = _parity_table(f"{bundle} on {runner.name}, {chosen}")
        certificate = measure(
            opened,
            runner,
            precisions=(chosen,),
            only_profiles=runner.name not in ON_CPU,
            versions={"saishiki": version("saishiki")},
            on_result=lambda row: _add_parity_row(table, row),
        )
    Console(stderr=as_json).print(table)
    if as_json:
        click.echo(msgspec.json.encode(certificate))
    if certificate.verdict == "failed":
        raise click.ClickException(f"{bundle} does not compute what its checkpoint computes, on {runner.name}")
    click.echo("passed", err=as_json)


@main.command(context_settings=_SETTINGS)
@_BUNDLE
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as it is.")
@click.option(
    "--plan",
    metavar="[MODULE]",
    is_flag=False,
    flag_value=ALL,
    help="Print the launches of a module's plan for the backend cuda, or of all plans by their kinds.",
)
@click.option(
    "--measured",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --plan: a result of saishiki bench; print the plans as they ran there, with the time of each launch.",
)
@click.option(
    "--library",
    type=click.Choice(get_args(OpBackend)),
    help="Count launches as they are run by cuDNN and our kernels, or by our kernels alone; with --target.",
)
@click.option("--target", metavar="SM", help="The GPU's compute capability, such as sm89; with --library.")
@exit_on_error
def inspect(
    bundle: Path,
    as_json: bool,
    plan: str | None,
    measured: Path | None,
    library: OpBackend | None,
    target: str | None,
) -> None:
    """Print what BUNDLE states about itself."""
    if measured is not None and plan is None:
        raise click.UsageError("--measured is about the launches of plans; give --plan too")
    if measured is not None and (library is not None or target is not None):
        raise click.UsageError("--measured prints plans as they ran; leave --library and --target out")
    opened = Bundle.open(bundle, allow_failed=True)
    on_gpu = _plan_on_gpu(plan, library, target)
    if plan is not None:
        tables = plan_tables(opened, plan, on_gpu) if measured is None else measured_tables(opened, plan, measured)
        for table in tables:
            Console().print(table)
        return
    manifest = opened.manifest
    if as_json:
        click.echo(json_from_manifest(manifest))
        return
    console = Console()
    console.print(_summary(bundle, manifest))
    console.print(_module_table(manifest))
    table = _parity_table(f"parity certificate: {manifest.certificate.verdict}")
    for row in manifest.certificate.rows:
        _add_parity_row(table, row)
    for image in manifest.certificate.images:
        _add_parity_row(table, image)
    console.print(table)


@main.command(context_settings=_SETTINGS)
@exit_on_error
def doctor() -> None:
    """Say which backends work here, and why the others do not; exit code 1 where none works."""
    console = Console()
    console.print(f"saishiki {version('saishiki')}, Python {platform.python_version()}, {platform.platform()}")
    reasons = diagnose()
    for name, reason in reasons.items():
        console.print(f"[green]works[/]        {name}" if reason is None else f"[red]unavailable[/]  {name}: ", end="")
        console.print("" if reason is None else reason, markup=False, highlight=False, soft_wrap=True)
    if all(reasons.values()):
        sys.exit(1)


def _plan_on_gpu(plan: str | None, library: OpBackend | None, target: str | None) -> Callable[[Plan], Plan]:
    """What plans are before they are counted; raises ``UsageError`` for options that do not go together."""
    if library is None and target is None:
        return lambda plan: plan
    if plan is None or library is None or target is None:
        raise click.UsageError("--library and --target go together, and with --plan: they say where a plan is run")
    compiled = dict.fromkeys(cubin.target for cubin in read_cubin_index().cubins)
    if target not in compiled:
        raise click.UsageError(f"no kernels are compiled for the target {target}: expected {', '.join(compiled)}")
    return partial(plan_on_gpu, library=library, target=target)


def _summary(bundle: Path, manifest: Manifest) -> Table:
    table = Table(title=escape(str(bundle)), show_header=False, title_justify="left")
    sampler, policy = manifest.sampler, manifest.precision
    rows = {
        "family": f"{manifest.family} ({manifest.variant}), predicts {manifest.prediction}",
        "config": ", ".join(f"{name} {value}" for name, value in manifest.config.items()),
        "checkpoint": f"{manifest.checkpoint.name}, sha256 {manifest.checkpoint.sha256[:16]}...",
        "sampler": f"{sampler.name}, {sampler.steps} steps, eta {sampler.eta:g}, start {sampler.start}",
        "profiles": "\n".join(str(profile) for profile in manifest.profiles),
        "precision": f"{policy.default}, in fp32: {', '.join(policy.fp32_modules) or 'nothing'}; "
        f"largest activation {policy.largest_activation:.3g} in {policy.largest_activation_in}",
        "written by": f"saishiki {manifest.saishiki_version}: {manifest.export_command}",
        "size": f"{sum(entry.bytes for entry in manifest.files()) / 1e6:.1f} MB in {len(manifest.files())} files",
    }
    for name, text in rows.items():
        table.add_row(name, escape(text))
    return table


def _module_table(manifest: Manifest) -> Table:
    table = Table("module", "inputs", "outputs", "graphs", "engines", title="modules", title_justify="left")
    for name, module in manifest.modules.items():
        engines = [
            f"{e.backend} {e.target} {e.key.precision}, {e.key.builder} {e.key.builder_version}, "
            f"{e.file.bytes / 1e6:.1f} MB, {e.fused_attentions} fused attentions"
            for e in module.engines
        ]
        graphs = [f"{precision}: {graph.nodes} nodes" for precision, graph in module.graphs.items()]
        inputs, outputs = module.signature.inputs, module.signature.outputs
        cells = ([str(spec) for spec in inputs], [str(spec) for spec in outputs], graphs, engines)
        table.add_row(name, *("\n".join(cell) for cell in cells), end_section=True)
    return table


def _parity_table(title: str) -> Table:
    return Table("what", "precision", "sizes", "error", "budget", "verdict", title=escape(title), title_justify="left")


def _add_parity_row(table: Table, row: ParityRow | ImageParity) -> None:
    sizes = "x".join(str(size) for size in row.sizes.values())
    verdict = "[green]passed[/]" if row.passed else "[red]failed[/]"
    if isinstance(row, ParityRow):
        table.add_row(row.module, row.precision, sizes, f"{row.error:.1e}", f"{row.budget:.1e}", verdict)
        return
    mode = [f"{row.settings['mode']}"] if "mode" in row.settings else []
    what = ", ".join(["image", *mode, f"{len(row.step_budgets)} steps"])
    table.add_row(what, row.precision, sizes, f"{row.psnr_db:.1f} dB", f">= {row.least_psnr_db:.1f} dB", verdict)

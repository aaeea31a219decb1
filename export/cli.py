"""``export-engines``: from a checkpoint to a bundle, on the command line."""

import shlex
import sys
from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from saishiki.export.engines import parse_targets
from saishiki.export.freed_memory import return_freed_memory
from saishiki.export.pipeline import CertificateFailed, export_bundle
from saishiki.export.report import json_of_export, observing, table_of_export
from saishiki.export.request import (
    ExportRequest,
    names_in,
    parse_guidance,
    parse_modes,
    parse_precision,
    parse_profiles,
)
from saishiki.models import LoadOptions
from saishiki.models.colorizediffusion.hoists import HOISTS, hoists_without
from saishiki.runtime.cli_errors import exit_on_error
from saishiki.runtime.manifest import Manifest

PIPE_COLUMNS = 140
"""Width of the table where stdout is no terminal: wide enough that nothing is cut."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The bundle [CHECKPOINT's name.saishiki, here].")
@click.option(
    "--targets",
    default="rtx",
    show_default=True,
    help="Engines to build, with commas: onnx (graphs only, always there), rtx (no GPU needed), tensorrt (on the GPU), "
    "cuda (plans of our own engine, no GPU needed).",
)
@click.option("--sm", type=int, multiple=True, help="Compute capability for rtx, such as 89 or 86; repeatable [89].")
@click.option(
    "--size",
    multiple=True,
    help="Picture size: 256, 256x384 (height x width) or a range 128:256:512; repeatable, one profile each "
    "[the family's own: AnimeDiffusion 256, ColorizeDiffusion 512].",
)
@click.option("--batch", default="1", show_default=True, help="Batch size: 1, or a range such as 1:4 or 1:2:4.")
@click.option("--attention-heads", type=int, help="Attention heads, where the checkpoint does not say.")
@click.option("--head-channels", type=int, help="Width of an attention head, where the checkpoint does not say.")
@click.option("--prediction", type=click.Choice(["eps", "v"]), help="What it predicts, instead of measuring it.")
@click.option("--image-encoder", type=click.Path(path_type=Path), help="OpenCLIP, where the checkpoint has none.")
@click.option("--modes", help="Modes to export, with commas [all but the foreground ones].")
@click.option("--guidance", help="Guidance to export, with commas: none,reference,sketch,both [reference].")
@click.option("--merge", is_flag=True, help="Also export what a merge scale above 0 needs.")
@click.option(
    "--without-hoists",
    help=f"What the denoiser shall compute in every step after all, with commas: {','.join(HOISTS)}.",
)
@click.option("--precision", default="both", show_default=True, help="Graphs to write: both, fp16 or fp32.")
@click.option("--thorough", is_flag=True, help="Certify runs of all steps at any size, however long that takes.")
@click.option("--keep-failed", is_flag=True, help="Write the bundle, marked, even where its certificate fails.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
@click.option(
    "--rebuild", is_flag=True, help="Do everything anew, even where nothing has changed since a bundle was made."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the bar and the table.")
@click.version_option(package_name="saishiki")
@exit_on_error
def main(
    checkpoint: Path,
    output: Path | None,
    targets: str,
    sm: tuple[int, ...],
    size: tuple[str, ...],
    batch: str,
    attention_heads: int | None,
    head_channels: int | None,
    prediction: Literal["eps", "v"] | None,
    image_encoder: Path | None,
    modes: str | None,
    guidance: str | None,
    merge: bool,
    without_hoists: str | None,
    precision: str,
    thorough: bool,
    keep_failed: bool,
    overwrite: bool,
    rebuild: bool,
    as_json: bool,
) -> None:
    """Export a trained CHECKPOINT (.safetensors, .pth, .ckpt) to a bundle of ONNX graphs and TensorRT engines.

    The export ends with a parity certificate. Where the graphs do not compute what the checkpoint computes, the exit
    code is 1 and no bundle is written.
    """
    return_freed_memory()
    request = ExportRequest(
        checkpoint=checkpoint,
        output=output or Path(f"{checkpoint.stem}.saishiki"),
        targets=parse_targets(targets, sm),
        profiles=parse_profiles(size, batch),
        load=LoadOptions(
            attention_head=attention_heads,
            head_channels=head_channels,
            prediction=prediction,
            image_encoder=image_encoder,
            modes=parse_modes(modes),
            guidance=parse_guidance(guidance),
            merge=merge,
            without_hoists=hoists_without(names_in(without_hoists)).switched_off,
        ),
        precisions=parse_precision(precision),
        thorough=thorough,
        keep_failed=keep_failed,
        overwrite=overwrite,
        rebuild=rebuild,
        command=shlex.join(["export-engines", *sys.argv[1:]]),
    )
    try:
        with observing(quiet=as_json) as observer:
            result = export_bundle(request, observer)
    except CertificateFailed as failure:
        _print(failure.manifest, failure.kept, None, as_json=as_json)
        raise
    _print(result.manifest, result.bundle, result.reused_engines, as_json=as_json)


def _print(manifest: Manifest, bundle: Path | None, reused_engines: int | None, *, as_json: bool) -> None:
    if as_json:
        click.echo(json_of_export(manifest, bundle=bundle, reused_engines=reused_engines))
        return
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    console.print(table_of_export(manifest))
    if bundle:
        click.echo(f"bundle: {bundle}")

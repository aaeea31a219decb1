"""From a checkpoint to a bundle: graphs and reference from PyTorch, then engines, certificate, and the manifest.

Where nothing has changed since a bundle was made, its files are checked and reused instead.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import onnxruntime
import torch

from saishiki.export.apart import manifest_from_checkpoint_apart
from saishiki.export.bundle_writer import MARKER, BundleDraft, check_output, commit_bundle, draft_bundle
from saishiki.export.engines import (
    CUDA,
    BuildReport,
    Target,
    build_engine,
    cached_engine,
    copy_engine,
    engine_key,
    hash_of_key,
    installed_builder,
)
from saishiki.export.freed_memory import return_garbage
from saishiki.export.from_checkpoint import manifest_from_checkpoint
from saishiki.export.plan import write_plans
from saishiki.export.progress import CERTIFY, ENGINES, READ, WRITE, Observer, Silent
from saishiki.export.request import ExportRequest
from saishiki.export.reuse import digest_of_export, finished_bundles, remember, reuse_files
from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.errors import BundleError, SaishikiError
from saishiki.runtime.manifest import (
    Certificate,
    EngineEntry,
    ImageParity,
    Manifest,
    ModuleEntry,
    ParityRow,
)
from saishiki.runtime.parity import measure
from saishiki.runtime.signature import Profile

LEAN_ABOVE_BYTES = 512 * 2**20
"""Weights of a graph above which it is certified in less memory, and a little slower."""
APART_ABOVE_BYTES = 512 * 2**20
"""Size of a checkpoint above which PyTorch runs in a process of its own, for a few seconds more."""


class CertificateFailed(SaishikiError):  # noqa: N818 - what happened, as in ``except CertificateFailed``
    """The exported graphs are not what the checkpoint computes. ``manifest`` holds the certificate."""

    def __init__(self, manifest: Manifest, kept: Path | None) -> None:
        self.manifest, self.kept = manifest, kept
        where = f"kept as {kept}, marked as failed" if kept else "no bundle was written (--keep-failed writes one)"
        super().__init__(f"the export is not equivalent to the checkpoint, {where}")


@dataclass(frozen=True)
class ExportResult:
    """A finished export: the bundle, and how many of its engines were there already."""

    bundle: Path
    manifest: Manifest
    reused_engines: int


def export_bundle(request: ExportRequest, observer: Observer | None = None) -> ExportResult:
    """Exports a checkpoint to a bundle, which appears at ``request.output`` complete or not at all.

    Raises ``CheckpointError``, ``BackendError`` or ``EngineBuildError`` where a step cannot be done,
    ``FileExistsError`` where the output exists, and :class:`CertificateFailed` where the graphs do not compute what the
    checkpoint does.
    """
    observer = observer or Silent()
    check_output(request.output, overwrite=request.overwrite)
    for target in request.targets:
        installed_builder(target)
    observer.stage(READ)
    digest = digest_of_export(request)
    if not request.rebuild and (reused := _reused(request, digest, observer)):
        return reused
    with draft_bundle(request.output) as draft:
        described = _described(request, draft, observer)
        built, engines = _with_engines(draft, described, request, observer)
        observer.stage(CERTIFY)
        manifest = replace(built, certificate=_certify(draft, built, observer))
        observer.stage(WRITE)
        failed = manifest.certificate.verdict == "failed"
        if not failed:
            (draft.path / MARKER).write_text(digest)
        if not failed or request.keep_failed:
            commit_bundle(draft, manifest, request.output, overwrite=request.overwrite)
    if failed:
        raise CertificateFailed(manifest, request.output if request.keep_failed else None)
    remember(digest, request.output)
    return ExportResult(request.output, manifest, engines)


def _reused(request: ExportRequest, digest: str, observer: Observer) -> ExportResult | None:
    """The export made of an earlier bundle's files, where there is one that nothing has changed since."""
    for bundle in finished_bundles(digest, request.output):
        manifest = replace(bundle.manifest, export_command=request.command)
        with draft_bundle(request.output) as draft:
            try:
                reuse_files(bundle, draft, request.output)
            except BundleError as error:
                observer.note(f"{error}; exporting again")
                continue
            observer.stage(WRITE)
            (draft.path / MARKER).write_text(digest)
            commit_bundle(draft, manifest, request.output, overwrite=request.overwrite)
        observer.note(
            f"nothing has changed since {bundle.path} was made: its files are reused, checked by their hashes"
        )
        remember(digest, request.output)
        return ExportResult(request.output, manifest, sum(len(m.engines) for m in manifest.modules.values()))
    return None


def _described(request: ExportRequest, draft: BundleDraft, observer: Observer) -> Manifest:
    """The manifest without engines; what PyTorch took of the memory for a large checkpoint is free afterwards."""
    files = (request.checkpoint, *([request.load.image_encoder] if request.load.image_encoder else []))
    large = sum(file.stat().st_size for file in files if file.is_file()) > APART_ABOVE_BYTES
    describe = manifest_from_checkpoint_apart if large else manifest_from_checkpoint
    manifest = describe(request, draft, observer)
    return_garbage()
    return manifest


def _with_engines(
    draft: BundleDraft, manifest: Manifest, request: ExportRequest, observer: Observer
) -> tuple[Manifest, int]:
    """The manifest with all engines, which are in the draft, and how many of them were there already."""
    observer.stage(ENGINES)
    modules, reused = dict(manifest.modules), 0
    if CUDA in request.targets:
        modules = write_plans(draft, modules, manifest.profiles, observer)
    wanted = tuple(product((target for target in request.targets if target != CUDA), modules))
    for done, (target, name) in enumerate(wanted):
        observer.part(f"{name} for {target}", done, len(wanted))
        engine, from_cache = _build(draft, name, modules[name], manifest.profiles, target, observer)
        modules[name] = replace(modules[name], engines=(*modules[name].engines, engine))
        reused += from_cache
    return replace(manifest, modules=modules), reused


def _build(
    draft: BundleDraft,
    name: str,
    entry: ModuleEntry,
    profiles: tuple[Profile, ...],
    target: Target,
    observer: Observer,
) -> tuple[EngineEntry, bool]:
    precision = entry.closest("fp16")
    graph = entry.graphs[precision]
    builder = installed_builder(target)
    key = engine_key(
        graph, signature=entry.signature, profiles=profiles, precision=precision, target=target, builder=builder
    )

    def build(output: Path) -> BuildReport:
        onnx = draft.path / graph.graph.path
        return build_engine(onnx, signature=entry.signature, profiles=profiles, target=target, output=output)

    cached = cached_engine(key, build)
    path = draft.folder(f"engines/{target.backend}-{target.name}") / f"{name}.engine"
    copy_engine(cached, path)
    report = cached.report
    if report.unfused_attentions:
        observer.note(f"{name} for {target}: {report.unfused_attentions} attentions are not fused; it will be slower")
    observer.note(
        f"{name} for {target}: " + ("reused from the cache" if cached.reused else f"built in {report.seconds:.1f} s")
    )
    engine = EngineEntry(
        backend=target.backend,
        target=target.name,
        key=key,
        key_hash=hash_of_key(key),
        file=draft.entry(path),
        build_seconds=round(report.seconds, 2),
        layers=report.layers,
        fused_attentions=report.fused_attentions,
        activation_bytes=report.activation_bytes,
    )
    return engine, cached.reused


def _certify(draft: BundleDraft, manifest: Manifest, observer: Observer) -> Certificate:
    stated = manifest.certificate
    total, measured = len(stated.rows) + len(stated.images), itertools.count(1)

    def tell(row: ParityRow | ImageParity) -> None:
        observer.part(f"after {row.vectors}, {row.precision}", next(measured), total)

    graphs = [graph for module in manifest.modules.values() for graph in module.graphs.values()]
    largest = max(graph.weights.bytes if graph.weights else 0 for graph in graphs)
    return measure(
        Bundle(draft.path, manifest, check_hashes=False),
        OnnxRuntimeBackend(device=None, lean=largest > LEAN_ABOVE_BYTES),
        precisions=("fp32", "fp16"),
        only_profiles=False,
        versions=_versions(),
        on_result=tell,
    )


def _versions() -> Mapping[str, str]:
    return {"torch": str(torch.__version__), "onnxruntime": onnxruntime.__version__}

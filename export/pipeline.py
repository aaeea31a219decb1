"""From a checkpoint to a bundle: recognise, load, write graphs, record the reference, build engines, certify, write.

Where nothing has changed since a bundle was made, its files are checked and reused instead.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

import onnxruntime
import torch
from safetensors.numpy import save_file

from saishiki.export.bundle_writer import MARKER, BundleDraft, check_output, commit_bundle, draft_bundle
from saishiki.export.certificate import record_reference
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
from saishiki.export.graphs import write_graphs
from saishiki.export.plan import write_plans
from saishiki.export.precision_policy import precision_policy
from saishiki.export.progress import CERTIFY, ENGINES, GRAPHS, READ, REFERENCE, SCAN, WRITE, Observer, Silent
from saishiki.export.request import ExportRequest, with_sides
from saishiki.export.reuse import digest_of_export, finished_bundles, remember, reuse_files
from saishiki.export.vectors_file import vectors_file
from saishiki.models import Checkpoint, Family, LoadedModel, read_checkpoint, recognize
from saishiki.models.streaming import streamed_weights
from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend
from saishiki.runtime.bundle import Bundle, file_entry
from saishiki.runtime.errors import BundleError, SaishikiError
from saishiki.runtime.manifest import (
    FORMAT_VERSION,
    Certificate,
    CheckpointEntry,
    EngineEntry,
    ImageParity,
    Manifest,
    ModuleEntry,
    ParityRow,
    PrecisionPolicy,
)
from saishiki.runtime.parity import measure
from saishiki.runtime.signature import Profile, Signature, profiles_for

LEAN_ABOVE_BYTES = 512 * 2**20
"""Weights of a graph above which it is certified in less memory, and a little slower."""


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


@dataclass(frozen=True)
class _Source:
    """What is being exported, and the profiles over all sizes that its modules have."""

    checkpoint: Checkpoint
    family: Family
    model: LoadedModel
    profiles: tuple[Profile, ...]


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
    source = _load(request, observer)
    for signature in source.model.signatures.values():
        _check_profiles(signature, source.profiles)
    with draft_bundle(request.output) as draft:
        manifest, engines = _fill(draft, source, request, observer)
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


def _load(request: ExportRequest, observer: Observer) -> _Source:
    checkpoint = read_checkpoint(request.checkpoint)
    family = recognize(checkpoint)
    family.check_options(request.load)
    model = family.load(checkpoint, request.load)
    observer.note(f"{checkpoint.path.name}: {family.name} ({model.variant})")
    for notice in model.notices:
        observer.note(notice)
    profiles = tuple(family.complete(with_sides(profile, family.side_px)) for profile in request.profiles)
    return _Source(checkpoint, family, model, profiles)


def _check_profiles(signature: Signature, profiles: tuple[Profile, ...]) -> None:
    for profile in profiles_for(signature, profiles):
        for corner in profile.corners():
            signature.check_sizes(corner)


def _fill(draft: BundleDraft, source: _Source, request: ExportRequest, observer: Observer) -> tuple[Manifest, int]:
    """Writes every file of the bundle but the manifest, which is returned with the number of reused engines."""
    observer.stage(SCAN)
    with streamed_weights():
        policy = precision_policy(source.model, source.family, observer)
    observer.stage(GRAPHS)
    modules = write_graphs(draft, source.model, source.family, policy.fp32_modules, request.precisions, observer)
    save_file(dict(source.model.schedule), draft.path / "schedule.safetensors")

    return_garbage()

    observer.stage(REFERENCE)
    with vectors_file(draft.path / "parity.safetensors") as vectors, streamed_weights():
        expected = record_reference(
            source.model,
            source.family,
            source.profiles,
            policy.fp32_modules,
            asked=request.precisions,
            thorough=request.thorough,
            vectors=vectors,
            observer=observer,
        )

    return_garbage()

    observer.stage(ENGINES)
    reused = 0
    if CUDA in request.targets:
        modules = write_plans(draft, modules, source.profiles, observer)
    wanted = tuple(product((target for target in request.targets if target != CUDA), modules))
    for done, (target, name) in enumerate(wanted):
        observer.part(f"{name} for {target}", done, len(wanted))
        engine, from_cache = _build(draft, name, modules[name], source.profiles, target, observer)
        modules[name] = replace(modules[name], engines=(*modules[name].engines, engine))
        reused += from_cache

    observer.stage(CERTIFY)
    certificate = Certificate("failed", "onnxruntime", {}, expected.rows, expected.images)
    manifest = _manifest(draft, source, request, policy, modules, certificate)
    return replace(manifest, certificate=_certify(draft, manifest, observer)), reused


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


def _manifest(
    draft: BundleDraft,
    source: _Source,
    request: ExportRequest,
    policy: PrecisionPolicy,
    modules: Mapping[str, ModuleEntry],
    certificate: Certificate,
) -> Manifest:
    checkpoint = source.checkpoint
    return Manifest(
        format_version=FORMAT_VERSION,
        saishiki_version=version("saishiki"),
        family=source.family.name,
        variant=source.model.variant,
        prediction=source.model.prediction,
        config=source.model.config,
        checkpoint=CheckpointEntry(checkpoint.path.name, checkpoint.sha256, checkpoint.metadata),
        schedule=file_entry(draft.path, "schedule.safetensors"),
        sampler=source.family.sampler,
        profiles=source.profiles,
        modules=modules,
        precision=policy,
        parity=file_entry(draft.path, "parity.safetensors"),
        certificate=certificate,
        export_command=request.command,
    )

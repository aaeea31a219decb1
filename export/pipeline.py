"""From a checkpoint to a bundle: recognise, load, write graphs, record the reference, build engines, certify, write."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import torch
from safetensors.numpy import save_file

from saishiki.export.bundle_writer import BundleDraft, check_output, commit_bundle, draft_bundle
from saishiki.export.certificate import record_reference
from saishiki.export.drawings import draw_pairs
from saishiki.export.engines import (
    BuildReport,
    Target,
    build_engine,
    cached_engine,
    copy_engine,
    engine_key,
    hash_of_key,
    installed_builder,
)
from saishiki.export.half_graph import half_graph
from saishiki.export.onnx_graph import OPSET, trace, write_graph
from saishiki.export.precision import fp32_modules, islands_of, scan_ranges
from saishiki.export.progress import CERTIFY, ENGINES, GRAPHS, READ, REFERENCE, SCAN, WRITE, Observer, Silent
from saishiki.export.request import ExportRequest
from saishiki.models import Checkpoint, Family, LoadedModel, read_checkpoint, recognize
from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend
from saishiki.runtime.bundle import Bundle, file_entry
from saishiki.runtime.errors import SaishikiError
from saishiki.runtime.manifest import (
    FORMAT_VERSION,
    Certificate,
    CheckpointEntry,
    EngineEntry,
    GraphEntry,
    Manifest,
    ModuleEntry,
    Precision,
    PrecisionPolicy,
)
from saishiki.runtime.parity import measure
from saishiki.runtime.signature import Profile, Signature, multiples_of, profiles_for

TRACE_SIZES = {"batch": 2, "height": 8, "width": 12, "steps": 3}
"""Sizes to trace at, in units of what each must be a multiple of; distinct, so that no two are taken for one."""

SCAN_PX = 64


class CertificateFailed(SaishikiError):  # noqa: N818 - what happened, as in ``except CertificateFailed``
    """The exported graphs are not what the checkpoint computes. ``manifest`` holds the certificate."""

    def __init__(self, manifest: Manifest, kept: Path | None) -> None:
        self.manifest, self.kept = manifest, kept
        where = f"kept as {kept}, marked as failed" if kept else "no bundle was written (--keep-failed writes one)"
        super().__init__(f"the export is not equivalent to the checkpoint, {where}")


@dataclass(frozen=True)
class ExportResult:
    """A finished export: the bundle, and how many of its engines came from the cache."""

    bundle: Path
    manifest: Manifest
    reused_engines: int


@dataclass(frozen=True)
class _Source:
    """What is being exported."""

    checkpoint: Checkpoint
    family: Family
    model: LoadedModel


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
    source = _load(request, observer)
    for signature in source.model.signatures.values():
        _check_profiles(signature, request.profiles)
    with draft_bundle(request.output) as draft:
        manifest, reused = _fill(draft, source, request, observer)
        observer.stage(WRITE)
        failed = manifest.certificate.verdict == "failed"
        if not failed or request.keep_failed:
            commit_bundle(draft, manifest, request.output, overwrite=request.overwrite)
    if failed:
        raise CertificateFailed(manifest, request.output if request.keep_failed else None)
    return ExportResult(request.output, manifest, reused)


def _load(request: ExportRequest, observer: Observer) -> _Source:
    checkpoint = read_checkpoint(request.checkpoint)
    family = recognize(checkpoint)
    model = family.load(checkpoint, request.load)
    observer.note(f"{checkpoint.path.name}: {family.name} ({model.variant})")
    for notice in model.notices:
        observer.note(notice)
    return _Source(checkpoint, family, model)


def _check_profiles(signature: Signature, profiles: tuple[Profile, ...]) -> None:
    for profile in profiles_for(signature, profiles):
        for corner in profile.corners():
            signature.check_sizes(corner)


def _fill(draft: BundleDraft, source: _Source, request: ExportRequest, observer: Observer) -> tuple[Manifest, int]:
    """Writes every file of the bundle but the manifest, which is returned with the number of reused engines."""
    observer.stage(SCAN)
    policy = _precision_policy(source)
    observer.stage(GRAPHS)
    modules = {name: _write_graphs(draft, source, name, policy) for name in source.model.modules}
    save_file(dict(source.model.schedule), draft.path / "schedule.safetensors")

    observer.stage(REFERENCE)
    expected = record_reference(
        source.model, source.family, request.profiles, policy.fp32_modules, thorough=request.thorough
    )
    save_file(dict(expected.vectors), draft.path / "parity.safetensors")

    observer.stage(ENGINES)
    reused = 0
    for target in request.targets:
        for name, entry in modules.items():
            engine, from_cache = _build(draft, name, entry, request.profiles, target, observer)
            modules[name] = replace(modules[name], engines=(*modules[name].engines, engine))
            reused += from_cache

    observer.stage(CERTIFY)
    certificate = Certificate("failed", "onnxruntime", {}, expected.rows, expected.images)
    manifest = _manifest(draft, source, request, policy, modules, certificate)
    return replace(manifest, certificate=_certify(draft, manifest)), reused


def _precision_policy(source: _Source) -> PrecisionPolicy:
    """The policy for the modules that go to fp16; names of submodules carry their module in front."""
    multiples = multiples_of(source.model.signatures.values())
    sizes = {"batch": 4, "steps": 10} | {
        side: _round_up(SCAN_PX, multiples.get(side, 1)) for side in ("height", "width")
    }
    pictures = draw_pairs(sizes["batch"], sizes["height"], sizes["width"], seed=0)
    kept: list[str] = []
    peaks = {}
    for name, module in source.model.modules.items():
        if name in source.family.fp32_modules:
            kept.append(name)
            continue
        with torch.inference_mode():
            inputs = source.model.probe(name, sizes, *pictures)
        scan = scan_ranges(module, [inputs])
        where, largest = scan.peak()
        peaks[f"{name}.{where}".rstrip(".")] = largest
        kept += [f"{name}.{submodule}".rstrip(".") for submodule in fp32_modules(scan)]
    peak = max(peaks, key=lambda name: peaks[name])
    return PrecisionPolicy("fp16", tuple(kept), peaks[peak], peak)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _write_graphs(draft: BundleDraft, source: _Source, name: str, policy: PrecisionPolicy) -> ModuleEntry:
    module, signature = source.model.modules[name], source.model.signatures[name]
    sizes = {symbol: TRACE_SIZES[symbol] * signature.multiples.get(symbol, 1) for symbol in signature.symbols}
    models: dict[Precision, ir.Model] = {"fp32": trace(module, signature, sizes)}
    if name not in policy.fp32_modules:
        models["fp16"] = half_graph(models["fp32"], keep_fp32=islands_of(name, policy.fp32_modules))
    graphs: dict[Precision, GraphEntry] = {}
    for precision, model in models.items():
        graph = write_graph(model, signature, draft.folder("onnx") / f"{name}.{precision}.onnx")
        graphs[precision] = GraphEntry(
            graph=draft.entry(graph.path), weights=draft.entry(graph.weights), nodes=graph.nodes, opset=OPSET
        )
    return ModuleEntry(signature, graphs, engines=())


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


def _certify(draft: BundleDraft, manifest: Manifest) -> Certificate:
    return measure(
        Bundle(draft.path, manifest, check_hashes=False),
        OnnxRuntimeBackend(device=None),
        precisions=("fp32", "fp16"),
        only_profiles=False,
        versions=_versions(),
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
        prediction=source.family.prediction,
        config=source.model.config,
        checkpoint=CheckpointEntry(checkpoint.path.name, checkpoint.sha256, checkpoint.metadata),
        schedule=file_entry(draft.path, "schedule.safetensors"),
        sampler=source.family.sampler,
        profiles=request.profiles,
        modules=modules,
        precision=policy,
        parity=file_entry(draft.path, "parity.safetensors"),
        certificate=certificate,
        export_command=request.command,
    )

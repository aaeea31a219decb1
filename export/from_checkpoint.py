"""What an export does with the network in PyTorch: load it, scan it, write its graphs, run the reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from safetensors.numpy import save_file

from saishiki.export.bundle_writer import BundleDraft
from saishiki.export.certificate import Expectation, record_reference
from saishiki.export.freed_memory import return_garbage
from saishiki.export.graphs import write_graphs
from saishiki.export.precision_policy import precision_policy
from saishiki.export.progress import GRAPHS, REFERENCE, SCAN, Observer
from saishiki.export.request import ExportRequest, with_sides
from saishiki.export.vectors_file import vectors_file
from saishiki.models import Checkpoint, Family, LoadedModel, read_checkpoint, recognize
from saishiki.models.streaming import streamed_weights
from saishiki.runtime.bundle import file_entry
from saishiki.runtime.manifest import (
    FORMAT_VERSION,
    Certificate,
    CheckpointEntry,
    Manifest,
    ModuleEntry,
    PrecisionPolicy,
)
from saishiki.runtime.signature import Profile, Signature, profiles_for

SCHEDULE_NAME = "schedule.safetensors"
VECTORS_NAME = "parity.safetensors"


@dataclass(frozen=True)
class _Source:
    """What is being exported, and the profiles over all sizes that its modules have."""

    checkpoint: Checkpoint
    family: Family
    model: LoadedModel
    profiles: tuple[Profile, ...]


def manifest_from_checkpoint(request: ExportRequest, draft: BundleDraft, observer: Observer) -> Manifest:
    """Writes graphs, schedule and the reference's vectors into the draft; the manifest has no engines yet.

    Its certificate is ``failed``, and says what is to be measured. Raises ``CheckpointError``, or ``ValueError`` for
    sizes that the modules do not take.
    """
    source = _load(request, observer)
    for signature in source.model.signatures.values():
        _check_profiles(signature, source.profiles)
    observer.stage(SCAN)
    with streamed_weights():
        policy = precision_policy(source.model, source.family, observer)
    observer.stage(GRAPHS)
    modules = write_graphs(draft, source.model, source.family, policy.fp32_modules, request.precisions, observer)
    save_file(dict(source.model.schedule), draft.path / SCHEDULE_NAME)

    return_garbage()

    observer.stage(REFERENCE)
    expected = _record(source, policy, request, draft, observer)
    return _manifest(draft, source, request, policy, modules, expected)


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


def _record(
    source: _Source, policy: PrecisionPolicy, request: ExportRequest, draft: BundleDraft, observer: Observer
) -> Expectation:
    with vectors_file(draft.path / VECTORS_NAME) as vectors, streamed_weights():
        return record_reference(
            source.model,
            source.family,
            source.profiles,
            policy.fp32_modules,
            asked=request.precisions,
            thorough=request.thorough,
            vectors=vectors,
            observer=observer,
        )


def _manifest(
    draft: BundleDraft,
    source: _Source,
    request: ExportRequest,
    policy: PrecisionPolicy,
    modules: Mapping[str, ModuleEntry],
    expected: Expectation,
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
        schedule=file_entry(draft.path, SCHEDULE_NAME),
        sampler=source.family.sampler,
        profiles=source.profiles,
        modules=modules,
        precision=policy,
        parity=file_entry(draft.path, VECTORS_NAME),
        certificate=Certificate("failed", "onnxruntime", {}, expected.rows, expected.images),
        export_command=request.command,
    )

"""The bundle's ``manifest.json`` as plain data.

Everything a runtime needs to know is stated here and nowhere guessed: family, prediction type, sampler defaults,
modules with their signatures, the hash of every file, what each engine was built by and for, and the parity
certificate.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec

from saishiki.runtime.errors import BundleError
from saishiki.runtime.signature import Profile, Signature

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"

Precision = Literal["fp32", "fp16"]
Verdict = Literal["passed", "failed"]


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle: its path relative to the bundle, sha256 and size."""

    path: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in self.path or "\0" in self.path:
            raise ValueError(f"the file {self.path!r} is not inside the bundle")


@dataclass(frozen=True)
class CheckpointEntry:
    """The checkpoint that the bundle was exported from."""

    name: str
    sha256: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class GraphEntry:
    """An ONNX graph, and the file that holds its weights."""

    graph: FileEntry
    weights: FileEntry | None
    nodes: int
    opset: int


@dataclass(frozen=True)
class EngineKey:
    """What an engine depends on. Its hash names the engine; it is compared before the engine is deserialized."""

    weights: str
    graph: str
    profiles: str
    precision: Precision
    builder: str
    builder_version: str
    target: str


@dataclass(frozen=True)
class EngineEntry:
    """A built engine: the backend that runs it, the compute capability it is for, and how its build went.

    ``weights`` is the file of weights where the engine's own file does not hold them; engines may share it.
    """

    backend: str
    target: str
    key: EngineKey
    key_hash: str
    file: FileEntry
    build_seconds: float
    layers: int
    fused_attentions: int
    activation_bytes: int
    weights: FileEntry | None = None


@dataclass(frozen=True)
class ModuleEntry:
    """A module of the network: its signature, its graph per precision, and its engines."""

    signature: Signature
    graphs: Annotated[Mapping[Precision, GraphEntry], msgspec.Meta(min_length=1)]
    engines: tuple[EngineEntry, ...]

    def closest(self, precision: Precision) -> Precision:
        """The wanted precision where there is a graph in it, else the only one there is."""
        return precision if precision in self.graphs else next(iter(self.graphs))


@dataclass(frozen=True)
class PrecisionPolicy:
    """How the fp16 graphs were made: which submodules stay in fp32, and the largest activation that was seen."""

    default: Precision
    fp32_modules: tuple[str, ...]
    largest_activation: float
    largest_activation_in: str


@dataclass(frozen=True)
class SamplerDefaults:
    """How the published code samples."""

    name: str
    steps: int
    eta: float
    start: str


@dataclass(frozen=True)
class ParityRow:
    """One comparison with the PyTorch fp32 reference.

    ``vectors`` names the tensors in the parity file, ``error`` is relative to the reference (L2), ``budget`` the most
    it may be, and ``reference_fp16`` the error of the reference itself when every tensor is rounded to fp16.
    """

    module: str
    precision: Precision
    vectors: str
    sizes: Mapping[str, int]
    error: float
    max_abs: float
    budget: float
    reference_fp16: float
    passed: bool


@dataclass(frozen=True)
class ImageParity:
    """A whole run against the reference's: every step's x by relative L2 error, the image by PSNR and 8-bit levels.

    ``vectors`` names the tensors in the parity file: ``inputs/<name>``, ``states`` (S, B, ...) and ``image``
    (B, 3, H, W). ``settings`` is what the pipeline's ``replay`` takes besides. ``step_errors`` is empty where a backend
    keeps x on the device.
    """

    precision: Precision
    vectors: str
    sizes: Mapping[str, int]
    settings: Mapping[str, Any]
    step_errors: tuple[float, ...]
    step_budgets: tuple[float, ...]
    psnr_db: float
    least_psnr_db: float
    max_abs_levels: int
    passed: bool


@dataclass(frozen=True)
class Certificate:
    """The proof that the graphs compute what the checkpoint computes."""

    verdict: Verdict
    backend: str
    versions: Mapping[str, str]
    rows: tuple[ParityRow, ...]
    images: tuple[ImageParity, ...]


@dataclass(frozen=True)
class Manifest:
    """All that a bundle states about itself."""

    format_version: int
    saishiki_version: str
    family: str
    variant: str
    prediction: Literal["eps", "v"]
    config: Mapping[str, Any]
    checkpoint: CheckpointEntry
    schedule: FileEntry
    sampler: SamplerDefaults
    profiles: Annotated[tuple[Profile, ...], msgspec.Meta(min_length=1)]
    modules: Annotated[Mapping[str, ModuleEntry], msgspec.Meta(min_length=1)]
    precision: PrecisionPolicy
    parity: FileEntry
    certificate: Certificate
    export_command: str

    def files(self) -> tuple[FileEntry, ...]:
        """Every file that the bundle must hold."""
        graphs = [graph for module in self.modules.values() for graph in module.graphs.values()]
        engines = [engine for module in self.modules.values() for engine in module.engines]
        of_graphs = [file for graph in graphs for file in (graph.graph, graph.weights) if file is not None]
        of_engines = [file for engine in engines for file in (engine.file, engine.weights) if file is not None]
        # Graphs, and engines, may share a file of weights.
        return tuple(dict.fromkeys((self.schedule, self.parity, *of_graphs, *of_engines)))


def manifest_from_json(text: bytes, *, source: str) -> Manifest:
    """Reads a manifest; raises ``BundleError`` naming the field that is wrong, or the newer format version."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(_version_message(version, source))
        stated, digest = fields.pop("digest", None), digest_of(fields)
        if "certificate" in fields:
            fields["certificate"] = _nan_from_null(fields["certificate"])
        manifest = msgspec.convert(fields, Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{source}: not a valid manifest ({error}); export the checkpoint again") from error
    if stated != digest:
        raise BundleError(f"{source}: damaged (its content is not what its digest says); copy it anew, or export again")
    return manifest


def digest_of(fields: Mapping[str, Any]) -> str:
    """The sha256 of a manifest's fields as plain JSON data, without ``digest`` itself."""
    text = json.dumps({name: value for name, value in fields.items() if name != "digest"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _nan_from_null(value: Any) -> Any:
    """The same tree with NaN for null: JSON has no NaN, and a certificate that failed may hold some.

    A run's settings are left as they are, where null is a value of its own.
    """
    if isinstance(value, dict):
        return {name: item if name == "settings" else _nan_from_null(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_nan_from_null(item) for item in value]
    return math.nan if value is None else value


def _version_message(version: object, source: str) -> str:
    if isinstance(version, int) and version > FORMAT_VERSION:
        return (
            f"{source}: bundle format {version}, but this Saishiki reads up to {FORMAT_VERSION}; "
            "upgrade it with: pip install -U saishiki"
        )
    return f"{source}: bundle format {version!r}, expected {FORMAT_VERSION}; export the checkpoint again"


def json_from_manifest(manifest: Manifest) -> bytes:
    """The manifest as indented JSON, with a stable order of fields and their digest; NaN and infinity become null."""
    fields = msgspec.json.decode(msgspec.json.encode(manifest))
    return msgspec.json.format(msgspec.json.encode(fields | {"digest": digest_of(fields)}), indent=2) + b"\n"

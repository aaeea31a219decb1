"""What an engine depends on, and the hash that names it."""

import dataclasses
import hashlib
import json

from saishiki.export.engines.target import Builder, Target
from saishiki.runtime.manifest import EngineKey, GraphEntry, Precision
from saishiki.runtime.signature import Profile, Signature, profiles_for


def engine_key(
    graph: GraphEntry,
    *,
    signature: Signature,
    profiles: tuple[Profile, ...],
    precision: Precision,
    target: Target,
    builder: Builder,
) -> EngineKey:
    """The key of the engine that ``builder`` makes of a graph, which may hold its weights itself."""
    return EngineKey(
        weights=(graph.weights or graph.graph).sha256,
        graph=graph.graph.sha256,
        profiles=profiles_text(signature, profiles),
        precision=precision,
        builder=builder.name,
        builder_version=builder.version,
        target=target.name,
    )


def profiles_text(signature: Signature, profiles: tuple[Profile, ...]) -> str:
    """The profiles and a hash of the input shapes: ``batch 1..1..2, height 64; batch 1, height 96 #2f0a...``."""
    own = profiles_for(signature, profiles)
    points = [point for profile in own for point in (profile.min, profile.opt, profile.max)]
    shapes = [[spec.name, *spec.shape(point)] for point in points for spec in signature.inputs]
    return f"{'; '.join(map(str, own))} #{_sha256(shapes)[:16]}"


def hash_of_key(key: EngineKey) -> str:
    """The sha256, in hex, of the key as JSON with sorted names."""
    return _sha256(dataclasses.asdict(key))


def _sha256(data: object) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

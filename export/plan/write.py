"""Writes the plans of a bundle's modules, and one file with the weights of all."""

import time
from collections.abc import Mapping
from dataclasses import replace

from saishiki.export.bundle_writer import BundleDraft
from saishiki.export.engines import CUDA, engine_key, hash_of_key, installed_builder
from saishiki.export.freed_memory import return_garbage
from saishiki.export.plan.lower import LoweredPlan, lower_graph
from saishiki.export.progress import Observer
from saishiki.export.vectors_file import vectors_file
from saishiki.runtime.manifest import EngineEntry, ModuleEntry, Precision
from saishiki.runtime.plan import json_from_plan, lay_out
from saishiki.runtime.plan.ops import Attention
from saishiki.runtime.signature import Profile, Sizes, profiles_for

FOLDER = "engines/cuda"
WEIGHTS_NAME = "weights.safetensors"


def write_plans(
    draft: BundleDraft, modules: Mapping[str, ModuleEntry], profiles: tuple[Profile, ...], observer: Observer
) -> dict[str, ModuleEntry]:
    """The modules, each with its plan among its engines. Equal weights are stored once, whichever module they are of.

    Raises ``LoweringError`` where a graph has a node that has no place in a plan.
    """
    folder = draft.folder(FOLDER)
    engines: dict[str, EngineEntry] = {}
    with vectors_file(folder / WEIGHTS_NAME) as weights:
        for done, (name, module) in enumerate(modules.items()):
            observer.part(f"{name} for {CUDA}", done, len(modules))
            begin = time.monotonic()
            precision = module.closest("fp16")
            lowered = lower_graph(draft.path / module.graphs[precision].graph.path, module.signature, precision)
            for weight, stored in lowered.weights.items():
                weights[f"{name}/{weight}"] = stored.read()
            (folder / f"{name}.plan.json").write_bytes(json_from_plan(lowered.plan))
            engines[name] = _entry(draft, name, module, lowered, precision, profiles, time.monotonic() - begin)
            del lowered
            return_garbage()
    file = draft.entry(folder / WEIGHTS_NAME)
    return {
        name: replace(module, engines=(*module.engines, replace(engines[name], weights=file)))
        for name, module in modules.items()
    }


def _entry(
    draft: BundleDraft,
    name: str,
    module: ModuleEntry,
    lowered: LoweredPlan,
    precision: Precision,
    profiles: tuple[Profile, ...],
    seconds: float,
) -> EngineEntry:
    key = engine_key(
        module.graphs[precision],
        signature=module.signature,
        profiles=profiles,
        precision=precision,
        target=CUDA,
        builder=installed_builder(CUDA),
    )
    return EngineEntry(
        backend=CUDA.backend,
        target=CUDA.name,
        key=key,
        key_hash=hash_of_key(key),
        file=draft.entry(draft.path / FOLDER / f"{name}.plan.json"),
        build_seconds=round(seconds, 2),
        layers=len(lowered.plan.ops),
        fused_attentions=sum(isinstance(op, Attention) for op in lowered.plan.ops),
        activation_bytes=max(_arena_bytes(module, lowered, p.max) for p in profiles_for(module.signature, profiles)),
    )


def _arena_bytes(module: ModuleEntry, lowered: LoweredPlan, sizes: Sizes) -> int:
    return lay_out(lowered.plan, lowered.plan.extents(module.signature, sizes)).nbytes

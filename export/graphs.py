"""The ONNX graphs of a network: traced without weights, halved where the policy allows, written with shared ones."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from saishiki.export.bundle_writer import BundleDraft
from saishiki.export.half_graph import half_graph
from saishiki.export.onnx_graph import OPSET, OnnxGraph, trace, write_graph
from saishiki.export.precision import islands_of
from saishiki.export.progress import Observer
from saishiki.export.weights_file import WeightsFile, weights_file
from saishiki.models import Family, LoadedModel
from saishiki.runtime.manifest import FileEntry, GraphEntry, ModuleEntry, Precision
from saishiki.runtime.signature import Profile, Signature, Sizes

TRACE_SIZES = {"batch": 2, "height": 8, "width": 12, "steps": 3}
"""Sizes to trace at, in units of what each must be a multiple of; distinct, so that no two are taken for one."""


def precisions_of(module: str, asked: Collection[Precision], kept_fp32: Collection[str]) -> tuple[Precision, ...]:
    """The precisions of a module's graphs: those asked for, but fp32 alone where the policy keeps it in fp32."""
    return ("fp32",) if module in kept_fp32 else tuple(p for p in ("fp32", "fp16") if p in asked)


def write_graphs(
    draft: BundleDraft,
    model: LoadedModel,
    family: Family,
    kept_fp32: tuple[str, ...],
    asked: Collection[Precision],
    observer: Observer,
) -> dict[str, ModuleEntry]:
    """Writes every module's graphs into the draft; the modules of a group share one file of weights per precision."""
    written: dict[str, dict[Precision, tuple[OnnxGraph, Path]]] = {}
    with _SharedWeights(draft.folder("onnx"), model.weight_groups) as weights:
        for done, (name, module) in enumerate(model.modules.items()):
            observer.part(name, done, len(model.modules))
            signature = model.signatures[name]
            precisions = precisions_of(name, asked, kept_fp32)
            traced = trace(module, signature, trace_sizes(signature, family))
            written[name] = {}
            for precision, graph in _in_precisions(traced, precisions, islands_of(name, kept_fp32)).items():
                file = weights.file(name, precision)
                path = file.path.parent / f"{name}.{precision}.onnx"
                written[name][precision] = write_graph(graph, signature, path, file), file.path
    entries = {path: draft.entry(path) for graphs in written.values() for _, path in graphs.values()}
    return {name: _entry(draft, model.signatures[name], graphs, entries) for name, graphs in written.items()}


def trace_sizes(signature: Signature, family: Family) -> Sizes:
    """Sizes to trace a module at."""
    sizes = {symbol: size * signature.multiples.get(symbol, 1) for symbol, size in TRACE_SIZES.items()}
    every = family.complete(Profile(sizes, sizes, sizes)).opt
    return {symbol: every[symbol] for symbol in signature.symbols}


def _in_precisions(
    traced: ir.Model, precisions: tuple[Precision, ...], islands: tuple[str, ...]
) -> Mapping[Precision, ir.Model]:
    models: dict[Precision, ir.Model] = {}
    # Before the fp32 graph is written, which takes the exporter's notes away.
    if "fp16" in precisions:
        models["fp16"] = half_graph(traced, keep_fp32=islands)
    if "fp32" in precisions:
        models["fp32"] = traced
    return models


def _entry(
    draft: BundleDraft,
    signature: Signature,
    graphs: Mapping[Precision, tuple[OnnxGraph, Path]],
    weights: Mapping[Path, FileEntry],
) -> ModuleEntry:
    entries = {
        precision: GraphEntry(draft.entry(graph.path), weights[path], nodes=graph.nodes, opset=OPSET)
        for precision, (graph, path) in sorted(graphs.items(), reverse=True)
    }
    return ModuleEntry(signature, entries, engines=())


@dataclass(frozen=True)
class _SharedWeights:
    """The open files of weights, one for each group of modules and precision."""

    folder: Path
    groups: Mapping[str, str]
    _stack: ExitStack = field(default_factory=ExitStack)
    _files: dict[Path, WeightsFile] = field(default_factory=dict)

    def __enter__(self) -> "_SharedWeights":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def file(self, module: str, precision: Precision) -> WeightsFile:
        path = self.folder / f"{self.groups.get(module, module)}.{precision}.onnx.data"
        if path not in self._files:
            self._files[path] = self._stack.enter_context(weights_file(path))
        return self._files[path]

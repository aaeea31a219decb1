"""The tiny v2 checkpoint, exported: certified graphs with shared weights, engines, a quick rerun."""

import time
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import onnx
import pytest

from saishiki.export import export_bundle, parse_profiles
from saishiki.export.engines import build_engine, parse_targets
from saishiki.models import FAMILIES
from saishiki.runtime.backends.onnxruntime import OnnxRuntimeBackend
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.parity import measure
from tests.conformance import FOLDER
from tests.conformance_runners.colorizediffusion.tiny_bundles import ALSO_HALF, bundle_of, request_of

CHECKPOINT = FOLDER / "colorizediffusion-v2" / "tiny.safetensors"
HAS_BUILDER = find_spec("tensorrt_rtx") is not None
MODULES = (
    "image_encoder",
    "sketch_encoder",
    "style_encoder",
    "background_encoder",
    "vae_encoder",
    "time_projection",
    "context_projector",
    "context_projector_fg",
    "context_projector_bg",
    "style_projector",
    "warp_projector",
    "denoiser_vanilla_both",
    "denoiser_split_fg_bg_warp_both",
    "denoiser_split_fg_bg_warp_merge_both",
    "vae_decoder",
)
DENOISERS = tuple(name for name in MODULES if name.startswith("denoiser"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"needs {CHECKPOINT}; set SAISHIKI_CONFORMANCE to its folder"),
]


@pytest.fixture(scope="module")
def exported():
    return bundle_of(*ALSO_HALF)


def test_the_certificate_covers_every_module_and_mode(exported):
    certificate = exported.manifest.certificate
    assert certificate.verdict == "passed"
    assert {row.module for row in certificate.rows} == exported.manifest.modules.keys() == set(MODULES)
    runs = {(image.settings["mode"], image.precision) for image in certificate.images}
    assert runs == {(m, p) for m in ("vanilla", "style", "background", "full") for p in ("fp32", "fp16")}
    for image in certificate.images:
        assert image.psnr_db >= {"fp32": 50.0, "fp16": 38.0}[image.precision]


def test_the_manifest_says_what_was_exported(exported):
    manifest = exported.manifest
    assert (manifest.family, manifest.prediction) == ("colorizediffusion-v2", "v")
    assert (manifest.sampler.name, manifest.sampler.steps) == ("diffuser_dpm", 20)
    said = {name: manifest.config[name] for name in ("generation", "modes", "guidance", "merge", "without_hoists")}
    assert said == {
        "generation": "v2",
        "modes": ["vanilla", "style", "background", "full"],
        "guidance": ["both"],
        "merge": True,
        "without_hoists": [],
    }


def test_denoisers_share_their_weights(exported):
    modules = exported.manifest.modules
    for precision in ("fp32", "fp16"):
        files = {modules[name].graphs[precision].weights.path for name in DENOISERS}
        assert len(files) == 1
        (path,) = files
        stored = (exported.path / path).stat().st_size
        separately = sum(_weights_bytes(exported.path / modules[n].graphs[precision].graph.path) for n in DENOISERS)
        assert stored < 0.75 * separately


def _weights_bytes(graph):
    initializers = onnx.load(graph, load_external_data=False).graph.initializer
    width = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.INT64: 8}
    return sum(int(np.prod(tensor.dims)) * width[tensor.data_type] for tensor in initializers)


@pytest.mark.skipif(not HAS_BUILDER, reason="needs tensorrt_rtx: pip install 'saishiki[rtx]'")
@pytest.mark.parametrize("name", MODULES)
def test_an_engine_for_every_module(exported, name, tmp_path):
    """At the sizes that are used: at the smallest there is one token in the middle, and the builder fails."""
    manifest = exported.manifest
    (family,) = (family for family in FAMILIES if family.name == manifest.family)
    profiles = tuple(map(family.complete, parse_profiles(["512x512", "512x768"], "1")))
    (target,) = parse_targets("rtx", (89,))
    entry = manifest.modules[name]
    graph = exported.path / entry.graphs[entry.closest("fp16")].graph.path
    output = tmp_path / "engine"
    report = build_engine(graph, signature=entry.signature, profiles=profiles, target=target, output=output)
    assert output.stat().st_size > 0 < report.layers
    attentions = _attentions(onnx.load(graph, load_external_data=False))
    # The builder also finds attentions that are written out as products, as merging is.
    assert report.fused_attentions + report.unfused_attentions >= attentions * report.profiles
    # The narrow heads of the tiny network are not all fused.
    assert bool(report.fused_attentions) == bool(attentions)


def _attentions(model):
    functions = {function.name: function for function in model.functions}
    inlined = [n for node in model.graph.node for n in getattr(functions.get(node.op_type), "node", [node])]
    return sum(node.op_type == "Attention" for node in inlined)


def test_a_rerun_with_nothing_changed_reuses_the_bundle(exported, tmp_path):
    begin = time.monotonic()
    again = export_bundle(replace(request_of(*ALSO_HALF), output=tmp_path / "again.saishiki"))
    assert time.monotonic() - begin < 30
    assert again.bundle == tmp_path / "again.saishiki"
    assert again.manifest.modules == exported.manifest.modules


def test_swapped_prediction_turns_the_certificate_red(exported):
    """The same graphs and vectors, told that the network predicts noise."""
    changed = Bundle(exported.path, replace(exported.manifest, prediction="eps"))
    backend = OnnxRuntimeBackend(device=None, threads=1)
    certificate = measure(changed, backend, precisions=("fp32",), only_profiles=False, versions={})
    assert certificate.verdict == "failed"
    assert all(row.passed for row in certificate.rows)
    assert not any(image.passed for image in certificate.images)

"""Every hoist in ONNX Runtime: the graph with it and the graph without it, on the same conditions.

``pytest`` by itself leaves all of them out at once; ``-m exhaustive`` leaves out one at a time, as the tests of the
network do in PyTorch.
"""

from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch

from saishiki.export.drawings import draw_pairs
from saishiki.export.onnx_graph import trace, write_graph
from saishiki.export.weights_file import weights_file
from saishiki.models import LoadOptions, read_checkpoint
from saishiki.models.colorizediffusion.denoiser import Denoiser
from saishiki.models.colorizediffusion.denoiser_probes import scene_of
from saishiki.models.colorizediffusion.hoists import HOISTS, PLAIN, DenoiserHoists, hoists_without
from saishiki.models.colorizediffusion.loading import load
from saishiki.models.colorizediffusion.probes import Probe
from saishiki.runtime.pipelines.colorizediffusion import variant_of
from tests.conformance import FOLDER

CHECKPOINT = FOLDER / "colorizediffusion-v2" / "tiny.safetensors"
SIZES = {"batch": 1, "height": 128, "width": 64}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"needs {CHECKPOINT}; set SAISHIKI_CONFORMANCE to its folder"),
]


@cache
def full_scene():
    """v2 in mode full with both kinds of guidance and merging: what every hoist is about."""
    network = load(read_checkpoint(CHECKPOINT), LoadOptions()).network.requires_grad_(False)
    denoiser = Denoiser(network.unet, variant_of("v2", "full", "both", True), DenoiserHoists())
    with torch.inference_mode():
        return denoiser, scene_of(Probe(network, SIZES, *draw_pairs(1, 128, 64, seed=0)), denoiser, "full")


def prediction_of(hoists, folder):
    """What the graph with these hoists predicts, and how many nodes it has."""
    denoiser, scene = full_scene()
    module = Denoiser(denoiser.unet, denoiser.variant, hoists)
    signature = module.signature.at(SIZES)
    with weights_file(folder / "weights") as weights:
        graph = write_graph(trace(module, signature, {}), signature, folder / "graph.onnx", weights)
    with torch.inference_mode():
        inputs = {name: tensor.numpy() for name, tensor in scene.inputs(module.signature).items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    (prediction,) = onnxruntime.InferenceSession(graph.path, options).run(None, inputs)
    return prediction, graph.nodes


def relative(got, want):
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


@pytest.fixture(scope="module")
def hoisted(tmp_path_factory):
    return prediction_of(DenoiserHoists(), tmp_path_factory.mktemp("hoisted"))


@pytest.fixture(scope="module")
def rounding():
    """How far fp32 is from fp64 in the plain denoiser."""
    denoiser, scene = full_scene()
    plain = Denoiser(denoiser.unet, denoiser.variant, PLAIN)
    with torch.inference_mode():
        inputs = scene.inputs(plain.signature)
        single = plain(**inputs)
        plain.double()
        try:
            exact = plain(**{name: tensor.double() for name, tensor in inputs.items()})
        finally:
            plain.float()
    error = relative(single.numpy(), exact.numpy())
    assert 1e-7 < error < 1e-5
    return error


@pytest.mark.parametrize(
    "off",
    [
        *(pytest.param((name,), id=name, marks=pytest.mark.exhaustive) for name in HOISTS),
        pytest.param(HOISTS, id="all of them"),
    ],
)
def test_a_graph_without_a_hoist_predicts_the_same(off, hoisted, rounding, tmp_path):
    prediction, nodes = prediction_of(hoists_without(off), tmp_path)
    assert prediction.shape == (3, 4, 16, 8)
    assert relative(prediction, hoisted[0]) <= 2 * rounding
    # It is another graph, not the same one again.
    assert nodes != hoisted[1]

"""Names and shapes of ColorizeDiffusion's networks against the published checkpoints'."""

import json
from collections.abc import Iterable, Mapping

import pytest
import torch

from saishiki.models.colorizediffusion import CONFIGS, ColorizeDiffusionConfig
from saishiki.runtime.pipelines.colorizediffusion import GENERATIONS
from tests.conformance import FOLDER
from tests.conformance_runners.colorizediffusion.network_blocks import NETWORKS, checkpoint, tiny_config

Shapes = Mapping[str, tuple[int, ...]]

PREFIXES = {
    "v1": ("model.diffusion_model.", "control_encoder."),
    "v1.5": ("model.diffusion_model.", "control_encoder.", "transformer.", "thresh_embedder."),
    "v2": ("model.diffusion_model.", "control_encoder.", "bg_encoder.", "style_encoder."),
}

pytestmark = pytest.mark.skipif(
    not (FOLDER / "colorizediffusion-v1").is_dir(), reason="the key tables are in ../shared/conformance, not here"
)


def shapes_of(config: ColorizeDiffusionConfig) -> Shapes:
    """Of all parameters of this file's networks, which take no memory."""
    with torch.device("meta"):
        networks = {prefix: NETWORKS[prefix](config) for prefix in PREFIXES[config.generation]}
    return {
        prefix + key: tuple(tensor.shape)
        for prefix, network in networks.items()
        for key, tensor in network.state_dict().items()
    }


def published(shapes: Iterable[tuple[str, Iterable[int]]]) -> Shapes:
    """Without the VAE, the image tower and the schedule, which are others'."""
    elsewhere = ("first_stage_model.", "cond_stage_model.")
    return {key: tuple(shape) for key, shape in shapes if "." in key and not key.startswith(elsewhere)}


def full_size(generation: str) -> Shapes:
    table = json.loads((FOLDER / f"colorizediffusion-{generation}" / "keys.json").read_text())["full"]
    return published((key, shape) for key, (_, shape) in table.items())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_full_size_networks_have_the_published_names_and_shapes(generation: str) -> None:
    assert shapes_of(CONFIGS[generation]) == full_size(generation)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_tiny_networks_have_the_names_and_shapes_of_their_checkpoint(generation: str) -> None:
    family = f"colorizediffusion-{generation}"
    assert shapes_of(tiny_config(family)) == published(checkpoint(family).shapes.items())


@pytest.mark.parametrize(
    ("generation", "parameters_m"), [("v1", {"control_encoder.": 64.0}), ("v1.5", {"thresh_embedder.": 1.3})]
)
def test_generations_are_told_apart_by_their_names(generation: str, parameters_m: Mapping[str, float]) -> None:
    others = [other for other in GENERATIONS if other != generation]
    assert all(full_size(generation) != full_size(other) for other in others)
    for prefix, count in parameters_m.items():
        shapes = [shape for key, shape in shapes_of(CONFIGS[generation]).items() if key.startswith(prefix)]
        assert round(sum(torch.Size(shape).numel() for shape in shapes) / 1e6, 1) == count

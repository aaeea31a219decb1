import json

import pytest
import torch

from saishiki.models.colorizediffusion import CONFIGS
from saishiki.models.colorizediffusion.network import SCHEDULE_BUFFERS, ColorizeDiffusion
from tests.conformance import FOLDER
from tests.models.colorizediffusion.small import GENERATIONS, small_config, small_network


def on_meta(config, **options):
    with torch.device("meta"):
        return ColorizeDiffusion(config, **options)


def shapes(network):
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("image_encoder", [True, False], ids=["with-clip", "without-clip"])
def test_keys_of_the_full_size_network_are_the_published_ones(generation, image_encoder):
    path = FOLDER / f"colorizediffusion-{generation}" / "keys.json"
    if not path.is_file():
        pytest.skip(f"needs the key table {path}")
    table = json.loads(path.read_text())
    published = table["full"] | (table["cond_stage_visual"] if image_encoder else {})
    got = shapes(on_meta(CONFIGS[generation], image_encoder=image_encoder))
    assert got == {key: tuple(shape) for key, (_, shape) in published.items()}
    assert not table["cond_stage_text"].keys() & got.keys()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_networks_of_a_generation(generation):
    network = small_network(small_config(generation))
    prefixes = {key.partition(".")[0] for key in network.state_dict()} - set(SCHEDULE_BUFFERS)
    of_all = {"model", "control_encoder", "first_stage_model", "cond_stage_model"}
    assert (
        prefixes
        == of_all
        | {
            "v1": set(),
            "v1.5": {"transformer", "thresh_embedder"},
            "v2": {"bg_encoder", "style_encoder"},
        }[generation]
    )
    assert (network.transformer is None) == (network.thresh_embedder is None) == (generation != "v1.5")
    assert (network.bg_encoder is None) == (network.style_encoder is None) == (generation != "v2")


def test_schedule_buffers_have_the_configs_length():
    network = small_network(small_config("v1", timesteps=7))
    assert [network.get_buffer(name).shape for name in SCHEDULE_BUFFERS] == [(7,)] * 12


def test_unet_is_the_one_below_the_published_prefix():
    network = small_network(small_config("v1"))
    prefix = "model.diffusion_model."
    keys = {key.removeprefix(prefix) for key in network.state_dict() if key.startswith(prefix)}
    assert keys == network.unet.state_dict().keys()

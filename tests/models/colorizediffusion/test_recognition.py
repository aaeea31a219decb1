import json

import pytest

from saishiki.models import FAMILIES
from saishiki.models.colorizediffusion.recognition import matches
from tests.conformance import FOLDER
from tests.models.colorizediffusion.small import GENERATIONS, small_config, small_network

UNET = "model.diffusion_model."


def shapes_of(generation):
    return {key: tuple(tensor.shape) for key, tensor in small_network(small_config(generation)).state_dict().items()}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_matches_whole_checkpoints(generation):
    shapes = shapes_of(generation)
    assert matches(shapes)
    others = [family for family in FAMILIES if not family.name.startswith("colorizediffusion")]
    assert not any(family.matches(shapes) for family in others)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("part", [UNET, "first_stage_model.", "control_encoder."])
def test_matches_a_checkpoint_without_one_network(generation, part):
    """So that its loading can say what is missing; a v1 U-Net without its sketch encoder is Stable Diffusion's."""
    shapes = {key: shape for key, shape in shapes_of(generation).items() if not key.startswith(part)}
    assert matches(shapes) == (part != "control_encoder." or generation != "v1")


@pytest.mark.parametrize(
    "keys", [(), ("model.diffusion_model.input_blocks.0.0.weight",), ("denoise_fn.input.0.weight",)]
)
def test_does_not_match_other_networks(keys):
    assert not matches(dict.fromkeys(keys, (4, 4)))


@pytest.mark.parametrize(
    "family", ["animediffusion", "colorizediffusion-xl", "colorizediffusion-xl-adapter", "psc-diffusion"]
)
def test_does_not_match_the_other_families(family):
    path = FOLDER / family / "keys.json"
    if not path.is_file():
        pytest.skip(f"needs the key table {path}")
    assert not matches({key: tuple(shape) for key, (_, shape) in json.loads(path.read_text())["full"].items()})

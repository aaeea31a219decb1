"""What follows from a config: widths and places of all blocks."""

import pytest

from saishiki.models.colorizediffusion import CONFIGS
from saishiki.models.colorizediffusion.config import Place
from tests.models.colorizediffusion.small_networks import small_config


def test_sixteen_transformers_lie_where_they_are_published() -> None:
    names = [place.name for place in CONFIGS["v2"].transformer_places]
    decoder = ["out_2"] * 3 + ["out_1"] * 3 + ["out_0"] * 3
    assert names == ["in_0", "in_0", "in_1", "in_1", "in_2", "in_2", "mid", *decoder]
    scales = [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 1, 1, 1]
    assert [place.scale for place in CONFIGS["v2"].transformer_places] == scales


def test_widths_are_the_published_ones() -> None:
    config = CONFIGS["v2"]
    assert config.encoder_widths == (320,) * 4 + (640,) * 3 + (1280,) * 5
    assert config.decoder_widths == (1280,) * 6 + (640,) * 3 + (320,) * 3
    assert config.transformer_widths == (320, 320, 640, 640) + (1280,) * 6 + (640,) * 3 + (320,) * 3
    assert config.style_widths == (2560,) * 6 + (1280,) * 3 + (640,) * 3
    assert config.time_width == 1280


@pytest.mark.parametrize("generation", CONFIGS)
def test_pictures_are_multiples_of_64_and_latents_of_8(generation: str) -> None:
    assert (CONFIGS[generation].stride, CONFIGS[generation].latent_stride) == (64, 8)


def test_widths_follow_the_multipliers() -> None:
    config = small_config("v1")
    assert config.encoder_widths == (64,) * 10 + (128,) * 2
    assert config.decoder_places[:4] == (Place("out", 3),) * 3 + (Place("out", 2),)

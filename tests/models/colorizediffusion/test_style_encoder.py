"""The style encoder's vectors, and what they do."""

import torch

from saishiki.models.colorizediffusion import StyleEncoder
from saishiki.models.colorizediffusion.style_encoder import StyleModule, modulate
from tests.models.colorizediffusion.small_networks import randomized, small_config
from tests.models.colorizediffusion.test_background_encoder import picture


def test_vectors_have_twice_the_width_of_each_decoder_block() -> None:
    vectors = randomized(StyleEncoder(small_config("v2")))(*picture(batch=2))
    assert [tuple(vector.shape) for vector in vectors] == [(2, 256)] * 3 + [(2, 128)] * 9


def test_vectors_are_means_over_positions() -> None:
    encoder = randomized(StyleEncoder(small_config("v2")))
    first = encoder.features(*picture())[0]
    expected = encoder.zero_layers[0](first.mean(dim=(2, 3)))
    torch.testing.assert_close(encoder(*picture())[-1], expected, rtol=1e-5, atol=1e-5)


def test_modulate_takes_the_scale_first() -> None:
    h = torch.full((1, 2, 1, 1), 3.0)
    modulation = torch.tensor([[1.0, 0.0, 0.0, 10.0]])
    assert modulate(h, modulation).flatten().tolist() == [6.0, 13.0]


def test_a_style_module_normalises_the_sum_of_style_and_time() -> None:
    module = randomized(StyleModule(8, 6))
    style, embedding = torch.randn(2, 8), torch.randn(2, 6)
    norm, from_time, project = module
    expected = project(norm(style + from_time(embedding)))
    torch.testing.assert_close(module(style, embedding), expected)
    assert not torch.allclose(module(style, torch.nn.functional.silu(embedding)), expected, atol=1e-3)

"""The background encoder's maps, and the size embedding that it shares with the style encoder."""

import torch

from saishiki.models.colorizediffusion import BackgroundEncoder, size_embedding
from saishiki.models.colorizediffusion.layers import sinusoid
from tests.models.colorizediffusion.small_networks import CONTEXT, TOKENS, randomized, small_config


def picture(batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 4, 8, 16, generator=generator)
    context = torch.randn(batch, TOKENS, CONTEXT, generator=generator)
    return z, context, torch.randn(batch, 512, generator=generator)


def test_maps_are_tokens_of_every_decoder_block_deepest_first() -> None:
    maps = randomized(BackgroundEncoder(small_config("v2")))(*picture())
    tokens = [2, 2, 2, 8, 8, 8, 32, 32, 32, 128, 128, 128]
    widths = [128, 128, 64] + [64] * 9
    assert [tuple(tokens.shape[1:]) for tokens in maps] == list(zip(tokens, widths, strict=True))


def test_context_and_size_matter() -> None:
    encoder, (z, context, size) = randomized(BackgroundEncoder(small_config("v2"))), picture()
    before = encoder(z, context, size)[0]
    assert not torch.allclose(encoder(z, context * 2, size)[0], before, atol=1e-3)
    assert not torch.allclose(encoder(z, context, size * 2)[0], before, atol=1e-3)


def test_size_embedding_has_the_height_first() -> None:
    expected = torch.cat([sinusoid(torch.tensor([ratio]), 256) for ratio in (2.0, 4.0)], dim=1)
    torch.testing.assert_close(size_embedding((256, 512), (128, 128), 256), expected)


def test_size_embedding_enlarges_what_is_smaller_in_either_direction() -> None:
    height, width = 100 + 128, 220 / 100 * 228
    expected = sinusoid(torch.tensor([height / 128, width / 128]), 256).flatten()[None]
    torch.testing.assert_close(size_embedding((100, 220), (128, 128), 256), expected)
    assert not torch.allclose(size_embedding((128, 220), (128, 128), 256), expected, atol=1e-3)

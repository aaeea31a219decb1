"""The threshold embedder."""

import torch

from saishiki.models.colorizediffusion import ThresholdEmbedder
from saishiki.models.colorizediffusion.layers import sinusoid
from tests.models.colorizediffusion.small_networks import CONTEXT, randomized, small_config


def test_every_threshold_becomes_one_token() -> None:
    embedder = randomized(ThresholdEmbedder(small_config("v1.5")))
    thresholds = torch.tensor([0.5, 0.05])
    tokens = embedder(thresholds)
    assert tokens.shape == (2, 1, CONTEXT)
    torch.testing.assert_close(tokens[:, 0], embedder.embed_layer(sinusoid(thresholds, 256)))
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-4)

"""The cluster transformer."""

from dataclasses import replace

import torch

from saishiki.models.colorizediffusion import ClusterTransformer
from tests.models.colorizediffusion.small_networks import randomized, small_config


def test_tokens_are_a_set() -> None:
    torch.manual_seed(0)
    # Heads are 64 wide, whatever the U-Net's.
    transformer = randomized(ClusterTransformer(replace(small_config("v1.5"), context_dim=64, cluster_layers=2)))
    tokens = torch.randn(2, 9, 64)
    gathered = transformer(tokens)
    assert gathered.shape == (2, 6, 64)
    torch.testing.assert_close(transformer(tokens.flip(1)), gathered, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(transformer(tokens * 1.1), gathered, atol=1e-3)

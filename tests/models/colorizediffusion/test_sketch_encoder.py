"""The sketch encoder's hints."""

import torch

from saishiki.models.colorizediffusion import SketchEncoder
from tests.models.colorizediffusion.small_networks import randomized, small_config


def test_hints_have_the_sizes_of_the_blocks_they_are_added_to() -> None:
    encoder = randomized(SketchEncoder(small_config("v1")))
    hints = encoder(torch.zeros(2, 3, 64, 128))
    assert [tuple(hint.shape[2:]) for hint in hints] == [(8, 16), (4, 8), (2, 4), (1, 2), (1, 2)]
    assert [hint.shape[1] for hint in hints] == [64, 64, 64, 64, 128]


def test_the_next_stage_continues_from_the_stage_and_not_from_its_hint() -> None:
    encoder = randomized(SketchEncoder(small_config("v1")))
    sketch = torch.randn(1, 3, 64, 64)
    before = encoder(sketch)
    encoder.zero_blocks[0][0].weight.data.mul_(2.0)
    after = encoder(sketch)
    assert not torch.allclose(after[1], before[1])
    torch.testing.assert_close(after[2], before[2], rtol=0.0, atol=0.0)

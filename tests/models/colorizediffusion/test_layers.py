"""Sinusoids and attention."""

import math

import pytest
import torch

from saishiki.models.colorizediffusion.layers import attention, sinusoid


def test_sinusoid_has_cosines_first_and_fractions() -> None:
    (row,) = sinusoid(torch.tensor([2.5]), 4)
    expected = [math.cos(2.5), math.cos(0.025), math.sin(2.5), math.sin(0.025)]
    torch.testing.assert_close(row, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_attention_is_softmax_over_heads() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    by_head = [
        ((q[..., at] @ k[..., at].mT) / 2.0).softmax(-1) @ v[..., at] for at in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    torch.testing.assert_close(attention(q, k, v, 3), torch.cat(by_head, dim=-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copies", [2, 3])
def test_copies_share_their_keys(copies: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(copies * 2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    shared = attention(q, k, v, 3, copies=copies)
    repeated = attention(q, k.repeat(copies, 1, 1), v.repeat(copies, 1, 1), 3)
    torch.testing.assert_close(shared, repeated, rtol=1e-5, atol=1e-5)
    interleaved = attention(q, k.repeat_interleave(copies, 0), v.repeat_interleave(copies, 0), 3)
    assert not torch.allclose(shared, interleaved, atol=1e-2)

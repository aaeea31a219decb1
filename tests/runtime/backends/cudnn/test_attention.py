"""Attention from its graph, dense and as parts of one tensor, against fp64."""

import re
from typing import Any

import numpy as np
import pytest

from saishiki.runtime.backends.cudnn.attention import Attention
from saishiki.runtime.backends.cudnn.planner import Planner
from tests.runtime.backends.cudnn.host_memory import aligned, normal
from tests.runtime.backends.cudnn.played_frontend import PlayedFrontend
from tests.runtime.backends.cudnn.references import attention_reference


def test_attention_computes_what_it_says() -> None:
    op = Attention(2, 3, 5, 7, 8, 0.25)
    q, k, v, y = (aligned((2, tokens, 3, 8)) for tokens in (5, 7, 7, 5))
    for seed, tensor in enumerate((q, k, v)):
        tensor[...] = normal(*tensor.shape, seed=seed)
    addresses = {"q": q.ctypes.data, "k": k.ctypes.data, "v": v.ctypes.data, "y": y.ctypes.data}
    Planner(PlayedFrontend().cudnn, 90).first_plan(op).execute(0, addresses)
    assert np.abs(y - attention_reference(q, k, v, 0.25)).max() < 2e-3
    assert not np.abs(y - attention_reference(q, k, v, 0.5)).max() < 2e-3


def test_attention_of_parts_of_one_tensor() -> None:
    batch, tokens, heads, dim = 2, 6, 3, 8
    qkv, y = aligned((batch, tokens, 3, heads, dim)), aligned((batch, tokens, heads, dim))
    qkv[...] = normal(*qkv.shape)
    strides = (tokens * 72, 8, 72)
    op = Attention(
        batch, heads, tokens, tokens, dim, 0.3, query_strides=strides, key_strides=strides, value_strides=strides
    )
    part_bytes = 2 * heads * dim
    addresses = {name: qkv.ctypes.data + i * part_bytes for i, name in enumerate("qkv")} | {"y": y.ctypes.data}
    Planner(PlayedFrontend().cudnn, 90).first_plan(op).execute(0, addresses)
    assert np.abs(y - attention_reference(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], 0.3)).max() < 2e-3


def test_attention_may_be_compiled_and_has_no_statistics(played: PlayedFrontend) -> None:
    Planner(played.cudnn, 90).candidates(Attention(2, 3, 5, 7, 8, 0.25))
    log = played.graphs[0].log
    assert log[0] == "sdpa 0.25 False"
    assert "without ['RUNTIME_COMPILATION']" not in log


@pytest.mark.parametrize("strides", [(120, 8, 20), (120, 0, 24), (24, 24), (120, -8, 24)])
@pytest.mark.parametrize("name", ["query_strides", "key_strides", "value_strides"])
def test_attention_of_wrong_strides(name: str, strides: Any) -> None:
    with pytest.raises(ValueError, match=rf"Attention: {name} is {re.escape(repr(strides))}, expected those of image"):
        Attention(2, 3, 5, 7, 8, 0.25, **{name: strides})


def test_attention_of_a_wrong_head_dim() -> None:
    with pytest.raises(ValueError, match="Attention: head_dim is 12, expected a multiple of 8"):
        Attention(1, 1, 4, 4, 12, 1.0)

"""Attention: ``softmax(q k^T * scale) v`` for every head."""

import math
from typing import ClassVar

import numpy as np

from saishiki.runtime.plan.extents import Extents, Strided, Tensors
from saishiki.runtime.plan.ops.op import Cost, Op, OpBackend, exact
from saishiki.runtime.signature import Array


class Attention(Op, tag="attention", frozen=True):
    """Scores, softmax and the weighted sum in fp32, rounded once.

    Args:
        q: (B, heads, T, D), with D innermost, as are k and v: (B, heads, S, D).
        out: (B, T, heads, D), in whatever dims of the same order the buffer has.
    """

    q: Strided
    k: Strided
    v: Strided
    out: str
    scale: float

    backends: ClassVar[tuple[OpBackend, ...]] = ("cudnn", "triton")

    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.q.buffer, self.k.buffer, self.v.buffer)))

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def compute(self, tensors: Tensors) -> None:
        q, k, v = (exact(tensors.view(part)) for part in (self.q, self.k, self.v))
        batch, heads, tokens, _ = q.shape
        out = tensors[self.out].reshape(batch, tokens, heads, v.shape[3])
        for b, head in np.ndindex(q.shape[:2]):
            out[b, :, head] = softmax(q[b, head] @ k[b, head].T * self.scale) @ v[b, head]

    def cost(self, extents: Extents) -> Cost:
        parts = (self.q, self.k, self.v)
        keys = extents.strided_shape(self.k)[2]
        flops = 4 * math.prod(extents.strided_shape(self.q)) * keys
        return Cost(flops, sum(map(extents.strided_nbytes, parts)) + extents.nbytes(self.out))


def softmax(scores: Array) -> Array:
    """Over the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Array = weights / weights.sum(axis=-1, keepdims=True)
    return result

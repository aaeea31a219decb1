"""Cross-attention of each token to its own region of the reference, and the projection with a weight per region.

The kernels are ``saishiki.kernels.masked_split_cross_attention`` and ``split_projection``; a token's region is decided
by comparing an fp32 mask with a threshold. The order in which a kernel takes the tokens changes how much it computes,
not what.
"""

import math
from typing import ClassVar

import numpy as np

from saishiki.runtime.plan.extents import Extents, Strided, Tensors, resolve
from saishiki.runtime.plan.ops.attention import softmax
from saishiki.runtime.plan.ops.op import Cost, Op, OpBackend, exact
from saishiki.runtime.plan.ops.regions import is_foreground, write_tokens
from saishiki.runtime.signature import Array


class MaskedSplitCrossAttention(Op, tag="masked_split_cross_attention", frozen=True):
    """Foreground tokens attend to the first ``foreground_tokens`` keys, the others to the rest.

    Args:
        q: (B, T, heads * D), with heads * D innermost, as are k and v: (B, S, heads * D).
        mask: (B, T) fp32.
        order: (B, T) int32, a permutation of each row's tokens, as a ``RegionOrder`` gives it for this mask.
        out: (B, T, heads * D).
        foreground_at_threshold: whether a mask that equals the threshold is foreground.
        background_q: the queries of background tokens, where they are others.
        merge_scale: name of an fp32 (1,): how much of the foreground's result is replaced by the background's.
    """

    q: Strided
    k: Strided
    v: Strided
    mask: Strided
    order: str
    out: str
    heads: int
    foreground_tokens: str
    threshold: float
    foreground_at_threshold: bool
    foreground_scale: float = 1.0
    background_scale: float = 1.0
    background_q: Strided | None = None
    merge_scale: str | None = None

    backends: ClassVar[tuple[OpBackend, ...]] = ("triton",)

    def reads(self) -> tuple[str, ...]:
        parts = (self.q, self.k, self.v, self.mask, *([self.background_q] if self.background_q else []))
        names = (*(part.buffer for part in parts), self.order, *([self.merge_scale] if self.merge_scale else []))
        return tuple(dict.fromkeys(names))

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def compute(self, tensors: Tensors) -> None:
        q, k, v = (exact(tensors.view(part)) for part in (self.q, self.k, self.v))
        other = exact(tensors.view(self.background_q)) if self.background_q else q
        split = resolve(self.foreground_tokens, tensors.sizes)
        foreground = self._attend(q, k[:, :split], v[:, :split]) * self.foreground_scale
        background = self._attend(other, k[:, split:], v[:, split:]) * self.background_scale
        if self.merge_scale:
            share = tensors[self.merge_scale]
            foreground = foreground * (1 - share) + background * share
        mask = is_foreground(tensors.view(self.mask), self.threshold, at_threshold=self.foreground_at_threshold)
        result = np.where(mask[..., None], foreground, background)
        write_tokens(tensors[self.out], result, tensors[self.order])

    def _attend(self, q: Array, k: Array, v: Array) -> Array:
        result = np.empty_like(q)
        width = q.shape[2] // self.heads
        for b, head in np.ndindex(len(q), self.heads):
            own = slice(head * width, (head + 1) * width)
            scores = q[b, :, own] @ k[b, :, own].T / math.sqrt(width)
            result[b, :, own] = softmax(scores) @ v[b, :, own]
        return result

    def cost(self, extents: Extents) -> Cost:
        parts = [self.q, self.k, self.v, self.mask, *([self.background_q] if self.background_q else [])]
        keys = extents.strided_shape(self.k)[1]
        # Each token meets the keys of one region; with a merge, foreground tokens meet all.
        met = keys if self.merge_scale else resolve(self.foreground_tokens, extents.sizes)
        flops = 4 * math.prod(extents.strided_shape(self.q)) * met
        return Cost(flops, sum(map(extents.strided_nbytes, parts)) + extents.nbytes(self.order, self.out))


class SplitProjection(Op, tag="split_projection", frozen=True):
    """``x w_fg^T`` on foreground tokens, ``x w_bg^T`` on the others.

    Args:
        x: (B, T, K), with K innermost.
        foreground_weight: (N, K), as is the other.
        mask: (B, T) fp32.
        order: as of :class:`MaskedSplitCrossAttention`.
        out: (B, T, N).
    """

    x: Strided
    foreground_weight: str
    background_weight: str
    mask: Strided
    order: str
    out: str
    threshold: float
    foreground_at_threshold: bool

    backends: ClassVar[tuple[OpBackend, ...]] = ("triton",)

    def reads(self) -> tuple[str, ...]:
        weights = (self.foreground_weight, self.background_weight)
        return tuple(dict.fromkeys((self.x.buffer, *weights, self.mask.buffer, self.order)))

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def compute(self, tensors: Tensors) -> None:
        x = exact(tensors.view(self.x))
        foreground, background = (
            x @ exact(tensors[name]).T for name in (self.foreground_weight, self.background_weight)
        )
        mask = is_foreground(tensors.view(self.mask), self.threshold, at_threshold=self.foreground_at_threshold)
        write_tokens(tensors[self.out], np.where(mask[..., None], foreground, background), tensors[self.order])

    def cost(self, extents: Extents) -> Cost:
        weights = (self.foreground_weight, self.background_weight)
        flops = 2 * math.prod(extents.strided_shape(self.x)) * extents.shape(weights[0])[0]
        moved = sum(map(extents.strided_nbytes, (self.x, self.mask))) + extents.nbytes(*weights, self.order, self.out)
        return Cost(flops, moved)

"""Attention without a mask: ``softmax(scale q k^T) v``, fp16 in and out, softmax in fp32.

cuDNN makes this kernel while it plans, and loads it at once: it can be planned only where there is a driver, with
cuDNN 9.19 also only where there is NVRTC (``nvidia-cuda-nvrtc``), and that may take seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from saishiki.runtime.backends.cudnn.layout import Layout
from saishiki.runtime.backends.cudnn.operation import checked_channels, checked_sizes

Strides = tuple[int, int, int]
"""Elements from one image, head and token to the next; those of a head are next to each other."""


@dataclass(frozen=True)
class Attention:
    """Sizes of attention over tokens: q and y (B, T, heads, D), k and v (B, S, heads, D), all half.

    Args:
        queries: T.
        keys: S.
        head_dim: D, a multiple of 8.
        scale: what ``q k^T`` is multiplied by, ``D ** -0.5`` as a rule.
        query_strides: where q is part of a larger tensor, or in another order; None for a dense one, as y is.
        key_strides: the same of k.
        value_strides: the same of v.

    Raises ``ValueError`` for sizes and strides that cuDNN has no kernels for.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    scale: float
    query_strides: Strides | None = None
    key_strides: Strides | None = None
    value_strides: Strides | None = None

    compiled_when_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checked_sizes(self, "batch", "heads", "queries", "keys")
        checked_channels(self, "head_dim")
        for name in ("query_strides", "key_strides", "value_strides"):
            strides = getattr(self, name)
            if strides is not None and (len(strides) != 3 or min(strides) < 8 or any(s % 8 for s in strides)):
                raise ValueError(
                    f"Attention: {name} is {strides!r}, expected those of image, head and token, multiples of 8"
                )

    def layouts(self) -> Mapping[str, Layout]:
        """q, k, v and y in cuDNN's order of dims, (B, heads, tokens, D)."""
        return {
            "q": self._tokens(self.queries, self.query_strides),
            "k": self._tokens(self.keys, self.key_strides),
            "v": self._tokens(self.keys, self.value_strides),
            "y": self._tokens(self.queries, None),
        }

    def _tokens(self, count: int, strides: Strides | None) -> Layout:
        width = self.heads * self.head_dim
        strides = strides or (count * width, self.head_dim, width)
        return Layout((self.batch, self.heads, count, self.head_dim), (*strides, 1))

    def record(self, graph: Any, tensors: Mapping[str, Any]) -> Any:
        """Adds the attention; its statistics, for training, are left out."""
        y, _ = graph.sdpa(tensors["q"], tensors["k"], tensors["v"], attn_scale=self.scale, generate_stats=False)
        return y

"""The cases of the kernels that plans have besides: attention, orders, averages, LayerNorm, what is done pointwise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from roofline import Work

FP16_BYTES = 2
FP32_BYTES = INT32_BYTES = 4
FLOPS: Mapping[str, int] = {
    "average_pool": 1,
    "mean": 1,
    "layer_norm": 9,
    "add": 1,
    "silu": 4,
    "gated_gelu": 5,
    "modulate": 3,
}
"""For each number that is read, or by function for each that is written; an error function counts once."""
OPERANDS: Mapping[str, int] = {"silu": 1, "add": 2, "gated_gelu": 2, "modulate": 3}


@dataclass(frozen=True)
class PlainAttentionCase:
    """attention, fp16: as many tokens in every head."""

    network: str
    batch: int
    heads: int
    tokens: int
    keys: int
    head_dim: int

    op = "attention"

    @property
    def name(self) -> str:
        """As rows are labelled."""
        queries = f"{self.batch} x {self.tokens} queries, {self.keys} keys"
        return f"{self.network}: {queries}, {self.heads} heads of {self.head_dim}"

    shape_name = name

    def work(self) -> Work:
        rows = self.batch * self.heads * self.head_dim
        numbers = 2 * rows * (self.tokens + self.keys)
        return Work(4 * rows * self.tokens * self.keys, 0, numbers * FP16_BYTES, launches=1)


@dataclass(frozen=True)
class RegionOrderCase:
    """region_order: an fp32 mask in, int32 places out; a token counts as one comparison and one sum."""

    network: str
    batch: int
    tokens: int

    op = "region_order"

    @property
    def name(self) -> str:
        """As rows are labelled."""
        return f"{self.network}: {self.batch} x {self.tokens} tokens"

    shape_name = name

    def work(self) -> Work:
        tokens = self.batch * self.tokens
        return Work(0, 2 * tokens, tokens * (FP32_BYTES + INT32_BYTES), launches=1)


@dataclass(frozen=True)
class SmallCase:
    """One of the kernels that memory bounds, fp16.

    Args:
        shape: of average_pool (B, C, H, W), of mean (B, P, C), of layer_norm (rows, C), of pointwise any.
        function: of pointwise, whose operands are all as large as the result.
    """

    op: str
    network: str
    shape: tuple[int, ...]
    function: str = ""

    @property
    def name(self) -> str:
        """As rows are labelled."""
        return f"{self.network}: {self.function or self.op} of {' x '.join(map(str, self.shape))}"

    shape_name = name

    def work(self) -> Work:
        numbers = math.prod(self.shape)
        written = numbers // {"average_pool": 4, "mean": self.shape[1]}.get(self.op, 1)
        moved = numbers * OPERANDS.get(self.function, 1) + written
        return Work(0, FLOPS[self.function or self.op] * numbers, moved * FP16_BYTES, launches=1)


SMALL_CASES: tuple[PlainAttentionCase | RegionOrderCase | SmallCase, ...] = (
    PlainAttentionCase("AnimeDiffusion 256 px", 1, 4, 1024, 1024, 128),
    PlainAttentionCase("SD2.1 512 px", 2, 5, 4096, 4096, 64),
    PlainAttentionCase("SD2.1 512 px", 2, 10, 1024, 1024, 64),
    PlainAttentionCase("SD2.1 512 px", 2, 5, 4096, 256, 64),
    PlainAttentionCase("ViT-H", 1, 16, 257, 257, 80),
    PlainAttentionCase("SD VAE 512 px", 1, 1, 4096, 4096, 512),
    RegionOrderCase("SD2.1 512 px", 2, 4096),
    RegionOrderCase("SD2.1 1024 px", 2, 16384),
    SmallCase("average_pool", "AnimeDiffusion 256 px", (1, 64, 256, 256)),
    SmallCase("mean", "SD2.1 512 px", (1, 4096, 320)),
    SmallCase("layer_norm", "SD2.1 512 px", (8192, 320)),
    SmallCase("layer_norm", "ViT-H", (257, 1280)),
    SmallCase("pointwise", "SD2.1 512 px", (8192, 1280), "gated_gelu"),
    SmallCase("pointwise", "SD2.1 512 px", (8192, 320), "modulate"),
    SmallCase("pointwise", "SD2.1 512 px", (8192, 320), "add"),
    SmallCase("pointwise", "sketch encoder 512 px", (262144, 16), "silu"),
)
TINY_SMALL_CASES: tuple[PlainAttentionCase | RegionOrderCase | SmallCase, ...] = (
    PlainAttentionCase("tiny", 2, 3, 9, 7, 32),
    RegionOrderCase("tiny", 2, 9),
    SmallCase("average_pool", "tiny", (2, 8, 4, 6)),
    SmallCase("mean", "tiny", (2, 9, 16)),
    SmallCase("layer_norm", "tiny", (5, 24)),
    SmallCase("pointwise", "tiny", (5, 16), "gated_gelu"),
    SmallCase("pointwise", "tiny", (5, 15), "modulate"),
)

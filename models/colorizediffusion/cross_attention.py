"""Cross-attention to the reference's tokens: of all of them, or of each region's, with a LoRA per region.

The result of attention is multiplied by a strength before the output projection. In a call with a mask the context is
the foreground's tokens and then as many of the background's; each position takes what one of them gives.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saishiki.kernels.masked_split_cross_attention.reference import is_foreground
from saishiki.kernels.masked_split_cross_attention.semantics import Selection
from saishiki.models.colorizediffusion.config import LoRARank, Region
from saishiki.models.colorizediffusion.layers import attention
from saishiki.models.streaming import derived

Scale = float | Tensor
"""A number, or as an input of an exported graph a tensor of one element."""


class LoRALinear(nn.Linear):
    """A linear layer without bias; with a region, ``W x + up(down(x))`` of that region's LoRA, where it has one."""

    weight: nn.Parameter

    def __init__(self, width_in: int, width_out: int, ranks: Mapping[Region, LoRARank | None]) -> None:
        super().__init__(width_in, width_out, bias=False)
        self.regions: frozenset[Region] = frozenset(region for region, rank in ranks.items() if rank is not None)
        for region, rank in ranks.items():
            if rank is not None:
                width = rank if isinstance(rank, int) else int(rank * min(width_in, width_out))
                self.add_module(f"lora_down_{region}", nn.Linear(width_in, width, bias=False))
                self.add_module(f"lora_up_{region}", nn.Linear(width, width_out, bias=False))

    def forward(self, x: Tensor, region: Region | None = None) -> Tensor:
        """x: (.., width_in) -> (.., width_out)."""
        y = F.linear(x, self.weight)
        if region not in self.regions:
            return y
        down, up = self.lora(region)
        adapted: Tensor = y + up(down(x))
        return adapted

    def lora(self, region: Region) -> tuple[Any, Any]:
        """The two linear layers of a region that has a LoRA, the one that is applied first before the other."""
        return self.get_submodule(f"lora_down_{region}"), self.get_submodule(f"lora_up_{region}")

    def merged(self, region: Region | None) -> nn.Parameter:
        """(width_out, width_in): ``W + up @ down``, or W itself where the region has no LoRA.

        It is computed when it is needed where the weights are read when they are needed.
        """
        if region not in self.regions:
            weight: nn.Parameter = self.weight
            return weight
        down, up = self.lora(region)
        return derived(_merge, self.weight, up.weight, down.weight)


def _merge(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return weight + up @ down


class OutputProjection(nn.Linear):
    """A linear layer with a bias, which can give the bias alone to rows that attended to nothing."""

    def forward(self, x: Tensor, insert: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """x: (B, T, width_in) -> (B, T, width_out); ``insert`` puts rows of the bias (width_out,) between these."""
        y = F.linear(x, self.weight, self.bias)
        return y if insert is None else insert(y, self.bias)


@dataclass(frozen=True)
class Split:
    """A mask-guided call, as the published networks take it.

    Args:
        mask: (B, 1, h, w) at the latent's size, 1 on the foreground; it may leave [0, 1].
        threshold: where a position turns from background to foreground.
        fg_scale, bg_scale: of each region's attention; merge_scale: share of the background's in the foreground's.
        lora_fg, lora_bg: whether each region uses its LoRA, in layers that have one.
    """

    mask: Tensor
    threshold: Scale = 0.05
    fg_scale: Scale = 1.0
    bg_scale: Scale = 1.0
    merge_scale: Scale = 0.0
    lora_fg: bool = False
    lora_bg: bool = False


class CrossAttention(nn.Module):
    """Attention of an image's tokens (B, T, width) to a reference's (B, S, context_width)."""

    def __init__(
        self, width: int, context_width: int, *, head_channels: int, ranks: Mapping[Region, LoRARank | None]
    ) -> None:
        super().__init__()
        self.heads = width // head_channels
        self.to_q = LoRALinear(width, width, ranks)
        self.to_k = LoRALinear(context_width, width, ranks)
        self.to_v = LoRALinear(context_width, width, ranks)
        self.to_out = nn.Sequential(OutputProjection(width, width))

    def forward(self, x: Tensor, context: Tensor, *, strength: Scale = 1.0, region: Region | None = None) -> Tensor:
        """(B, T, width) without a mask; ``region`` names a LoRA to use."""
        return self.project_output(strength * self.region_attention(x, context, region))

    def split(
        self, x: Tensor, context: Tensor, split: Split, *, selection: Selection, scale: float, strength: Scale = 1.0
    ) -> Tensor:
        """(B, T, width) with a mask, which is resized by ``scale``; context: (B, 2 S, context_width)."""
        fg_context, bg_context = context.chunk(2, dim=1)
        bg = self.region_attention(x, bg_context, "bg" if split.lora_bg else None) * (split.bg_scale * strength)
        fg = self.region_attention(x, fg_context, "fg" if split.lora_fg else None) * (split.fg_scale * strength)
        fg = fg * (1.0 - split.merge_scale) + bg * split.merge_scale
        mask = resize_mask(split.mask, scale).flatten(1)  # (B, T)
        # The threshold may be a tensor, which compares as a number does.
        chosen = is_foreground(mask, selection=selection, threshold=split.threshold)  # type: ignore[arg-type]
        return self.project_output(torch.where(chosen[..., None], fg, bg))

    def region_attention(self, x: Tensor, context: Tensor, region: Region | None) -> Tensor:
        """(B, T, width), before the strength and the output projection."""
        q, k, v = self.to_q(x, region), self.to_k(context, region), self.to_v(context, region)
        return attention(q, k, v, self.heads)

    def project_output(self, x: Tensor, insert: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """(B, T, width) of what attention gave; ``insert`` is :class:`OutputProjection`'s."""
        output: Tensor = self.to_out[0](x, insert)
        return output


def resize_mask(mask: Tensor, scale: float) -> Tensor:
    """(B, 1, scale * h, scale * w) from (B, 1, h, w): plain bicubic; the factor defines the sampling grid."""
    if scale == 1.0:
        return mask
    return F.interpolate(mask, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)


def merged_linear(layer: LoRALinear, region: Region | None) -> nn.Linear:
    """The layer with a region's LoRA merged, as a linear layer without bias."""
    with torch.device("meta"):
        merged = nn.Linear(layer.in_features, layer.out_features, bias=False)
    merged.weight = layer.merged(region)
    return merged

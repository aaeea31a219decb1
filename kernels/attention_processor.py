"""Mask-guided cross-attention for the attention layers of diffusers.

``unet.set_attn_processor(MaskedSplitCrossAttnProcessor("colorizediffusion-xl"))``, then ``unet(x, t, context,
cross_attention_kwargs={"region_mask": mask})`` with ``context = [foreground tokens, background tokens]``.
Self-attention and calls without a mask are as diffusers has them; only these import diffusers.

Source: huggingface/diffusers 0.35 to 0.42 for what a layer hands to its processor; the published ColorizeDiffusion and
ColorizeDiffusionXL, observed from outside, for the resizing of the mask.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saishiki.kernels.masked_split_cross_attention import (
    SEMANTICS,
    SplitSemantics,
    masked_split_cross_attention,
    masked_split_cross_attention_reference,
)
from saishiki.kernels.split_projection import split_projection, split_projection_reference

# What a layer may have besides its projections, with the value that says that it has not.
_EXTRAS = {
    "group_norm": None,
    "spatial_norm": None,
    "norm_q": None,
    "norm_k": None,
    "norm_cross": None,
    "added_kv_proj_dim": None,
    "residual_connection": False,
    "rescale_output_factor": 1.0,
    "is_causal": False,
}


@dataclass(frozen=True)
class RegionProjections:
    """The weights of one region's own projections, (N, K) each, with its LoRA merged: ``W + up @ down``."""

    to_q: Tensor
    to_k: Tensor
    to_v: Tensor


class MaskedSplitCrossAttnProcessor(nn.Module):
    """A processor for diffusers' ``Attention``: each token attends to its region's half of the context.

    Args:
        semantics: a name in ``SEMANTICS``, such as "colorizediffusion-xl", or a rule of one's own.
        threshold, fg_scale, bg_scale, merge_scale: as that generation takes them.
        reference_scale: what cross-attention is multiplied by before the output projection, with a mask and without.
        foreground, background: a region's own projections, which take the place of the layer's in masked calls; they
            belong to a layer, so such a processor is made for each. Where nothing is merged, queries are projected by
            :func:`~saishiki.kernels.split_projection`, each token by one weight.
        reference: computes with plain torch, on any device, not with the kernels. They need a GPU or Triton's
            interpreter and raise ``ValueError`` elsewhere.

    Raises ``ValueError`` for a name that is not in ``SEMANTICS``.
    """

    def __init__(
        self,
        semantics: str | SplitSemantics,
        *,
        threshold: float = 0.05,
        fg_scale: float = 1.0,
        bg_scale: float = 1.0,
        merge_scale: float = 0.0,
        reference_scale: float = 1.0,
        foreground: RegionProjections | None = None,
        background: RegionProjections | None = None,
        reference: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(semantics, str):
            if semantics not in SEMANTICS:
                raise ValueError(f"expected semantics to be one of {', '.join(SEMANTICS)}, got {semantics!r}")
            semantics = SEMANTICS[semantics]
        self.arguments = semantics.arguments(
            threshold=threshold, fg_scale=fg_scale, bg_scale=bg_scale, merge_scale=merge_scale
        )
        self.reference_scale = reference_scale
        self.reference = reference
        for region, projections in (("fg", foreground), ("bg", background)):
            for name in ("to_q", "to_k", "to_v"):
                weight = None if projections is None else getattr(projections, name)
                self.register_buffer(f"{name}_{region}", weight, persistent=False)

    # Not forward: a layer reads the names of the parameters of __call__.
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        region_mask: Tensor | None = None,
    ) -> Tensor:
        """What the layer gives for tokens (B, T, C).

        Args:
            encoder_hidden_states: (B, S, C'), the foreground's tokens and then as many of the background's.
            region_mask: (B, 1, h, w) fp32, 1 on the foreground, at the size of the U-Net's input. It is resized to the
                layer's tokens by bicubic interpolation without antialiasing and may leave [0, 1]. Where it has fewer
                rows than the tokens, they are repeated, as diffusers' pipelines repeat theirs for guidance.

        Raises ``ValueError`` for an attention mask beside a region mask, a region mask that does not fit, and a layer
        with more than projections; ``TypeError`` for a region mask that is not fp32.
        """
        is_plain = region_mask is None and self.reference_scale == 1.0
        if encoder_hidden_states is None or is_plain:
            return _as_diffusers(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        _check_layer(attn)
        if attention_mask is not None:
            raise ValueError("expected no attention mask beside a region mask or a reference scale; leave it out")
        if hidden_states.ndim != 3:
            raise ValueError(f"expected hidden states (B, T, C), got {tuple(hidden_states.shape)}")
        if region_mask is None:
            out = self._attend_to_all(attn, hidden_states, encoder_hidden_states)
        else:
            out = self._attend_by_region(attn, hidden_states, encoder_hidden_states, region_mask)
        dense, dropout = attn.to_out
        result: Tensor = dropout(dense(out))
        return result

    def _attend_to_all(self, attn: Any, x: Tensor, context: Tensor) -> Tensor:
        projected = (attn.to_q(x), attn.to_k(context), attn.to_v(context))
        q, k, v = (tokens.unflatten(2, (attn.heads, -1)).transpose(1, 2) for tokens in projected)
        return self.reference_scale * F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def _attend_by_region(self, attn: Any, x: Tensor, context: Tensor, region_mask: Tensor) -> Tensor:
        mask = mask_of_tokens(region_mask, x.shape[0], x.shape[1])
        q, q_bg = self._queries(attn, x, mask)
        attend = masked_split_cross_attention_reference if self.reference else masked_split_cross_attention
        return attend(
            q,
            self._keys(attn, "to_k", context),
            self._keys(attn, "to_v", context),
            mask,
            heads=attn.heads,
            reference_scale=self.reference_scale,
            q_bg=q_bg,
            **self.arguments,
        )

    def _queries(self, attn: Any, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, T, N): of the foreground and of the background; or each token's own, and None."""
        weights = self._weights(attn, "to_q")
        if weights is None:
            return attn.to_q(x), None
        selection, threshold = self.arguments["selection"], self.arguments["threshold"]
        if selection == "blend" or self.arguments["merge_scale"] > 0:
            fg, bg = (F.linear(x, weight) for weight in weights)
            return fg, bg
        project = split_projection_reference if self.reference else split_projection
        return project(x, *weights, mask, selection=selection, threshold=threshold), None

    def _keys(self, attn: Any, name: str, context: Tensor) -> Tensor:
        """(B, S, N): both halves of the context, each by its region's weight."""
        weights = self._weights(attn, name)
        if weights is None:
            projected: Tensor = getattr(attn, name)(context)
            return projected
        fg, bg = (context[:, : context.shape[1] // 2], context[:, context.shape[1] // 2 :])
        return torch.cat([F.linear(fg, weights[0]), F.linear(bg, weights[1])], dim=1)

    def _weights(self, attn: Any, name: str) -> tuple[Tensor, Tensor] | None:
        """Of the foreground and of the background; None where neither has its own."""
        fg, bg = getattr(self, f"{name}_fg"), getattr(self, f"{name}_bg")
        if fg is None and bg is None:
            return None
        layer = getattr(attn, name)
        if layer.bias is not None:
            raise ValueError(f"expected {name} without a bias where a region has its own projections")
        return layer.weight if fg is None else fg, layer.weight if bg is None else bg


def mask_of_tokens(region_mask: Tensor, rows: int, tokens: int) -> Tensor:
    """(rows, tokens) fp32 from (B, 1, h, w) fp32: resized by the power of two that makes it that many tokens.

    Raises ``TypeError`` for another dtype, ``ValueError`` for a shape that does not come down to that.
    """
    if region_mask.dtype != torch.float32:
        raise TypeError(f"expected region_mask in torch.float32, got {region_mask.dtype}; rounded, regions would shift")
    if region_mask.ndim != 4 or region_mask.shape[1] != 1:
        raise ValueError(f"expected region_mask (B, 1, h, w), got {tuple(region_mask.shape)}")
    batch, _, height, width = region_mask.shape
    if not batch or rows % batch:
        raise ValueError(f"expected region_mask for {rows} rows or a part that is repeated, got {batch} rows")
    level = 0
    while (height >> level) * (width >> level) > tokens:
        level += 1
    if (height >> level) * (width >> level) != tokens:
        raise ValueError(
            f"expected region_mask to have {tokens} tokens when halved as the layer is, got {height}x{width}"
        )
    if level:
        region_mask = F.interpolate(region_mask, scale_factor=0.5**level, mode="bicubic", recompute_scale_factor=False)
    return region_mask.flatten(1).repeat(rows // batch, 1)


def _check_layer(attn: Any) -> None:
    found = [name for name, without in _EXTRAS.items() if getattr(attn, name, without) != without]
    if found:
        raise ValueError(f"expected a layer with projections alone, got one with {', '.join(found)}")


def _as_diffusers(attn: Any, x: Tensor, context: Tensor | None, mask: Tensor | None, temb: Tensor | None) -> Tensor:
    processors: Any = importlib.import_module("diffusers.models.attention_processor")
    result: Tensor = processors.AttnProcessor2_0()(attn, x, context, mask, temb)
    return result

"""LoRAs, strengths and the choice between regions."""

from collections.abc import Callable

import pytest
import torch

from saishiki.kernels import masked_split_cross_attention_reference
from saishiki.models.colorizediffusion.config import Region
from saishiki.models.colorizediffusion.cross_attention import CrossAttention, LoRALinear, Split, merged_linear
from tests.models.colorizediffusion.small_networks import randomized

WIDTH, CONTEXT, TOKENS = 16, 12, 5


def layer_with_loras() -> CrossAttention:
    return randomized(CrossAttention(WIDTH, CONTEXT, head_channels=8, ranks={"fg": 4, "bg": 0.5}))


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 16, WIDTH, generator=generator), torch.randn(2, 2 * TOKENS, CONTEXT, generator=generator)


def test_a_rank_may_be_a_share_of_the_smaller_side() -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in layer_with_loras().to_k.named_parameters()}
    assert shapes == {
        "weight": (WIDTH, CONTEXT),
        "lora_down_fg.weight": (4, CONTEXT),
        "lora_up_fg.weight": (WIDTH, 4),
        "lora_down_bg.weight": (6, CONTEXT),
        "lora_up_bg.weight": (WIDTH, 6),
    }


@pytest.mark.parametrize("region", ["fg", "bg", None])
def test_merged_weights_are_the_lora(region: Region | None) -> None:
    layer, x = layer_with_loras().to_q, tokens()[0]
    torch.testing.assert_close(merged_linear(layer, region)(x), layer(x, region), rtol=1e-5, atol=1e-5)
    others = {"fg", "bg", None} - {region}
    assert all((merged_linear(layer, other)(x) - layer(x, region)).abs().max() > 0.1 for other in others)


def test_a_layer_without_a_lora_gives_its_own_projection_for_any_region() -> None:
    layer, x = randomized(LoRALinear(WIDTH, WIDTH, {"fg": None})), tokens()[0]
    torch.testing.assert_close(layer(x, "fg"), layer(x), rtol=0.0, atol=0.0)
    assert layer.merged("fg") is layer.weight


def test_the_strength_acts_before_the_output_projection() -> None:
    layer, (x, context) = layer_with_loras(), tokens()
    bias = layer.to_out[0].bias
    full, half = layer(x, context), layer(x, context, strength=0.5)
    torch.testing.assert_close(half - bias, 0.5 * (full - bias), rtol=1e-5, atol=1e-5)
    assert (half - 0.5 * full).abs().max() > 0.01


def test_a_context_of_zeros_gives_the_bias_exactly() -> None:
    layer, (x, context) = layer_with_loras(), tokens()
    bias = layer.to_out[0].bias
    split = Split(torch.rand(2, 1, 4, 4), lora_fg=True, lora_bg=True)
    zeros = torch.zeros_like(context)
    for got in (layer(x, zeros), layer.split(x, zeros, split, selection="foreground_above", scale=1.0)):
        torch.testing.assert_close(got, bias.expand_as(got), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("merge", [0.0, 0.4])
def test_split_is_the_kernels_formula(merge: float) -> None:
    layer, (x, context) = layer_with_loras(), tokens()
    mask = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    split = Split(mask, 0.5, fg_scale=0.7, bg_scale=1.4, merge_scale=merge, lora_fg=True, lora_bg=True)
    got = layer.split(x, context, split, selection="foreground_above", scale=1.0, strength=0.85)
    halves: list[tuple[torch.Tensor, Region]] = list(zip(context.chunk(2, dim=1), ("fg", "bg"), strict=True))  # type: ignore[arg-type]
    gathered = masked_split_cross_attention_reference(
        layer.to_q(x, "fg"),
        torch.cat([layer.to_k(half, region) for half, region in halves], dim=1),
        torch.cat([layer.to_v(half, region) for half, region in halves], dim=1),
        mask.flatten(1),
        heads=layer.heads,
        selection="foreground_above",
        threshold=0.5,
        fg_scale=0.7,
        bg_scale=1.4,
        merge_scale=merge,
        reference_scale=0.85,
        q_bg=layer.to_q(x, "bg"),
    )
    torch.testing.assert_close(got, layer.project_output(gathered), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("selection", "at_threshold"), [("foreground_above", "bg"), ("background_below", "fg")])
def test_a_mask_at_the_threshold_is_what_the_generation_says(selection: str, at_threshold: Region) -> None:
    layer, (x, context) = layer_with_loras(), tokens()
    half = context.chunk(2, dim=1)[0 if at_threshold == "fg" else 1]
    split = Split(torch.full((2, 1, 4, 4), 0.5), threshold=0.5)
    got = layer.split(x, context, split, selection=selection, scale=1.0)  # type: ignore[arg-type]
    torch.testing.assert_close(got, layer(x, half), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change", [lambda rows, bias: rows, lambda rows, bias: torch.cat([rows, bias.expand_as(rows)])]
)
def test_output_projection_lets_rows_be_put_between(change: Callable[..., torch.Tensor]) -> None:
    layer, (x, _) = layer_with_loras(), tokens()
    rows = layer.project_output(x)
    torch.testing.assert_close(layer.project_output(x, change), change(rows, layer.to_out[0].bias))

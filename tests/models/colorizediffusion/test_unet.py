"""The U-Net's rules that differ between generations, and its pieces."""

import pytest
import torch

from saishiki.models.colorizediffusion import Conditioning, Split, UNet
from saishiki.runtime.pipelines.colorizediffusion import Generation
from tests.models.colorizediffusion.scenes import Scene, random_scene
from tests.models.colorizediffusion.small_networks import small_unet

RULES = {
    "v1": {"background_below"},
    "v1.5": {"foreground_above"},
}


def forward(unet: UNet, scene: Scene, given: Conditioning | None = None) -> torch.Tensor:
    with torch.inference_mode():
        return unet(scene.x, scene.t, scene.hints, scene.context, conditioning=given)


def scene_of(unet: UNet, *, split: bool = False) -> Scene:
    return random_scene(unet, split=split, height=8, width=8)


@pytest.mark.parametrize("generation", RULES)
def test_selection_is_one_rule_before_v2(generation: Generation) -> None:
    unet = small_unet(generation)
    assert {unet.selection(place) for place in unet.config.transformer_places} == RULES[generation]


def test_selection_changes_in_the_decoder_of_v2() -> None:
    unet = small_unet("v2")
    rules = [unet.selection(place) for place in unet.config.transformer_places]
    assert rules == ["background_below"] * 7 + ["foreground_above"] * 9


@pytest.mark.parametrize(("generation", "count"), [("v1", 0), ("v1.5", 16), ("v2", 9)])
def test_loras_are_where_the_generation_has_them(generation: Generation, count: int) -> None:
    layers = small_unet(generation).cross_attentions()
    assert [bool(layer.to_q.regions) for layer in layers] == [False] * (16 - count) + [True] * count


def test_a_strength_of_each_block_matters() -> None:
    unet = small_unet("v1")
    scene = scene_of(unet)
    plain = forward(unet, scene)
    for index in range(16):
        strengths = [1.0] * 16
        strengths[index] = 0.0
        assert not torch.allclose(forward(unet, scene, Conditioning(strengths)), plain, atol=1e-4), index


def test_strengths_of_another_number_are_refused() -> None:
    unet = small_unet("v1")
    with pytest.raises(ValueError, match="shorter"):
        forward(unet, scene_of(unet), Conditioning([1.0] * 15))


def test_the_time_and_every_hint_matter() -> None:
    unet = small_unet("v1")
    scene = scene_of(unet)
    plain = forward(unet, scene)
    later = Scene(**{**vars(scene), "t": scene.t + 1.0})
    assert not torch.allclose(forward(unet, later), plain, atol=1e-4)
    for index in range(5):
        hints = [hint * (2.0 if at == index else 1.0) for at, hint in enumerate(scene.hints)]
        assert not torch.allclose(forward(unet, Scene(**{**vars(scene), "hints": hints})), plain, atol=1e-3), index


def test_warping_needs_mask_maps_and_threshold() -> None:
    unet = small_unet("v2")
    scene = scene_of(unet, split=True)
    split = Split(scene.mask, threshold=0.5)
    without = forward(unet, scene, Conditioning(split=split))
    for given in (Conditioning(split=split, maps=scene.maps), Conditioning(split=split, warp_threshold=0.5)):
        torch.testing.assert_close(forward(unet, scene, given), without, rtol=0.0, atol=0.0)
    warped = forward(unet, scene, Conditioning(split=split, maps=scene.maps, warp_threshold=0.5))
    assert not torch.allclose(warped, without, atol=1e-2)
    kept = forward(unet, scene, Conditioning(split=split, maps=scene.maps, warp_threshold=-10.0))
    torch.testing.assert_close(kept, without, rtol=1e-5, atol=1e-5)


def test_time_projections_are_what_the_residual_blocks_get() -> None:
    unet, t = small_unet("v1"), torch.tensor([3.25, 900.0])
    vectors = unet.split_times(unet.time_projections(t))
    embedding = unet.time_embedding(t)
    assert len(vectors) == 22
    torch.testing.assert_close(vectors[0], unet.input_blocks[1][0].emb_layers(embedding))
    torch.testing.assert_close(vectors[-1], unet.output_blocks[11][0].emb_layers(embedding))


def test_style_modulations_are_those_of_every_block_at_every_step() -> None:
    unet = small_unet("v2")
    style, t = torch.randn(3, sum(unet.config.style_widths)), torch.tensor([1.0, 500.0])
    table = unet.style_modulations(style, unet.time_embedding(t))
    assert table.shape == (2, 3, sum(unet.config.style_widths))
    first = unet.config.style_widths[0]
    one = unet.style_modules[0](style[2:, :first], unet.time_embedding(t[1:]))
    torch.testing.assert_close(table[1, 2, :first], one[0], rtol=1e-5, atol=1e-5)

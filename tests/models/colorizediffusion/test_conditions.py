from dataclasses import replace

import pytest
import torch

from saishiki.models.colorizediffusion.conditions import prepare_conditions
from saishiki.models.colorizediffusion.given import ENHANCED, Pictures
from saishiki.models.colorizediffusion.latent_encoder import size_embedding
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from saishiki.models.colorizediffusion.pictures import clip_pixels, keep_background, squash
from saishiki.models.colorizediffusion.vae import VAEEncoder, sample_latent
from saishiki.runtime.pipelines.colorizediffusion.variants import MODES
from tests.models.colorizediffusion.small import small_config, small_network

V1, V15, V2 = (small_network(small_config(generation)) for generation in ("v1", "v1.5", "v2"))
GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=GENERATOR) * 2 - 1


R, G = random(1, 3, 90, 70), random(1, 3, 50, 110)
GIVEN = Pictures(
    sketch=random(1, 3, 64, 128),
    reference=R,
    reference_mask=(random(1, 1, 90, 70) + 1) / 2,
    sketch_mask=random(1, 1, 8, 16),
)
WITH_G = replace(GIVEN, background=G)
NOISES = [torch.randn(1, 4, 8, 16, generator=GENERATOR) for _ in range(3)]
M = keep_background(R, GIVEN.reference_mask, 0.5)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def prepare(network, pictures, mode, **changes):
    return prepare_conditions(network, pictures, replace(ENHANCED[mode], **changes), noises=NOISES)


def c(image, network=V2):
    return network.cond_stage_model(clip_pixels(image, 28))[:, 1:]


def z(image, noise):
    mean, logvar = VAEEncoder(V2.first_stage_model)(squash(image, (64, 128)))
    return sample_latent(mean, logvar, noise, scale_factor=0.18215)


def y(image):
    return size_embedding((image.shape[2], image.shape[3]), (64, 128), 16)


def same(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def context_of(*tokens):
    return (torch.cat(tokens, dim=1),)


@pytest.mark.parametrize("network", [V1, V15, V2], ids=["v1", "v1.5", "v2"])
def test_vanilla(network):
    got = prepare(network, WITH_G, "vanilla", control_scale=0.7)
    same((got.context,), (c(R, network),))
    same(got.hints, [0.7 * hint for hint in network.control_encoder(GIVEN.sketch)])
    same(got.blank_hints, [0.7 * hint for hint in network.control_encoder(torch.full((1, 3, 64, 128), -1.0))])
    assert (got.mask, got.maps, got.style, got.lora_fg, got.lora_bg) == (None, None, None, False, False)


@pytest.mark.parametrize("network", [V1, V15, V2], ids=["v1", "v1.5", "v2"])
def test_vanilla_without_a_reference_sees_zeros(network):
    assert torch.equal(prepare(network, Pictures(GIVEN.sketch), "vanilla").context, torch.zeros(1, 4, 64))


@pytest.mark.parametrize(("pictures", "background"), [(GIVEN, M), (WITH_G, G)], ids=["masked", "background"])
def test_v1_background(pictures, background):
    got = prepare(V1, pictures, "background")
    same((got.context,), context_of(c(R, V1), c(background, V1)))
    assert torch.equal(got.mask, GIVEN.sketch_mask)
    assert (got.maps, got.style, got.lora_fg, got.lora_bg) == (None, None, False, False)


@pytest.mark.parametrize("changes", [{"fg_enhance": True}, {"style_enhance": True}])
def test_v1_ignores_what_it_does_not_have(changes):
    same((prepare(V1, GIVEN, "vanilla", **changes).context,), (c(R, V1),))


def v15_tokens(pictures):
    of_reference, of_sketch = V15.thresh_embedder(torch.tensor([0.6, 0.1]))
    if pictures.background is not None:
        return c(R, V15) + of_sketch, c(G, V15) + of_reference
    masked = keep_background(R, GIVEN.reference_mask, 0.6)
    return c(R, V15) + of_sketch, V15.transformer(c(masked, V15) + of_reference)


@pytest.mark.parametrize("pictures", [GIVEN, WITH_G], ids=["masked", "background"])
def test_v15_background(pictures):
    thresholds = {"reference_threshold": 0.6, "sketch_threshold": 0.1}
    got = prepare(V15, pictures, "background", **thresholds)
    same((got.context,), context_of(*v15_tokens(pictures)))
    assert (got.lora_fg, got.lora_bg) == (False, True)
    both = prepare(V15, pictures, "foreground+background", **thresholds)
    same((both.context,), context_of(*v15_tokens(pictures), *v15_tokens(pictures)))
    assert (both.lora_fg, both.lora_bg) == (True, True)


def test_v15_foreground():
    got = prepare(V15, replace(GIVEN, reference_mask=None), "foreground")
    same((got.context,), context_of(c(R, V15), c(R, V15)))
    assert (got.lora_fg, got.lora_bg) == (True, False)
    assert torch.equal(got.mask, GIVEN.sketch_mask)


def test_v2_style():
    got = prepare(V2, GIVEN, "style")
    same(got.style, V2.style_encoder(z(R, NOISES[0]), c(R), y(R)))
    same((got.context,), (c(R),))
    assert (got.mask, got.maps, got.lora_fg) == (None, None, False)


def test_v2_style_with_background_merges():
    own, other = (V2.style_encoder(z(p, n), c(p), y(p)) for p, n in ((R, NOISES[0]), (G, NOISES[1])))
    got = prepare(V2, WITH_G, "style", merge_scale=0.3)
    same(got.style, [0.7 * a + 0.3 * b for a, b in zip(own, other, strict=True)])
    same((got.context,), (c(R),))


@pytest.mark.parametrize(
    ("mode", "pictures", "latent", "seen", "size", "background"),
    [
        ("background", GIVEN, (M, 0), R, R, M),
        ("background", WITH_G, (G, 0), G, G, G),
        ("full", GIVEN, (M, 1), R, R, M),
        ("full", WITH_G, (G, 1), R, G, G),
    ],
    ids=["background", "background-with-G", "full", "full-with-G"],
)
def test_v2_background_maps(mode, pictures, latent, seen, size, background):
    """Which latent, tokens and size each mode's maps are from; noises are drawn for style first."""
    got = prepare(V2, pictures, mode, background_factor=0.8)
    image, noise = latent
    same(got.maps, [0.8 * tokens for tokens in V2.bg_encoder(z(image, NOISES[noise]), c(seen), y(size))])
    same((got.context,), context_of(c(R), c(background)))
    assert torch.equal(got.mask, GIVEN.sketch_mask)
    assert (got.lora_fg, got.lora_bg) == (True, True)
    assert (got.style is None) == (mode == "background")


def test_v2_foreground():
    got = prepare(V2, WITH_G, "foreground")
    same((got.context,), context_of(c(R), c(R)))
    assert (got.maps, got.style, got.lora_fg, got.lora_bg) == (None, None, False, False)
    assert torch.equal(got.mask, GIVEN.sketch_mask)
    with_style = prepare(V2, WITH_G, "foreground", style_enhance=True)
    same((with_style.context,), context_of(c(R), c(G)))
    assert with_style.style is not None
    same((prepare(V2, GIVEN, "foreground", style_enhance=True).context,), context_of(c(R), c(R)))


@pytest.mark.parametrize(
    ("network", "mode", "gone", "match"),
    [
        (V1, "background", "sketch_mask", "need a mask of the sketch"),
        (V1, "background", "reference_mask", "need a mask of the reference, or a background"),
        (V1, "background", "reference", "need a reference"),
        (V15, "foreground", "sketch_mask", "need a mask of the sketch"),
        (V15, "foreground", "reference", "need a reference"),
        (V2, "style", "reference", "need a reference"),
        (V2, "background", "reference_mask", "need a mask of the reference, or a background"),
    ],
)
def test_what_is_needed_and_absent(network, mode, gone, match):
    with pytest.raises(ValueError, match=match):
        prepare(network, replace(GIVEN, **{gone: None}), mode)


def test_noises_that_are_absent():
    with pytest.raises(ValueError, match="need one more noise"):
        prepare_conditions(V2, GIVEN, ENHANCED["full"], noises=NOISES[:1])


def test_an_image_encoder_that_is_absent():
    network = ColorizeDiffusion(small_config("v1"), image_encoder=False)
    with pytest.raises(ValueError, match="need the image encoder, which was not loaded"):
        prepare(network, GIVEN, "vanilla")
    assert prepare(network, Pictures(GIVEN.sketch), "vanilla").context.shape == (1, 4, 64)


@pytest.mark.parametrize(
    ("network", "mode"), [(network, mode) for network in (V1, V15, V2) for mode in MODES[network.config.generation]]
)
def test_every_mode_of_a_generation_can_be_prepared(network, mode):
    got = prepare(network, WITH_G, mode)
    halves = 1 if got.mask is None else 4 if mode == "foreground+background" else 2
    assert got.context.shape == (1, halves * 4, 64)

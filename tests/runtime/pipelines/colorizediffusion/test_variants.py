"""Which denoiser runs which mode of ColorizeDiffusion."""

import pytest

from saishiki.runtime.pipelines.colorizediffusion import MODES, SLOTS, DenoiserVariant, variant_of, variants_of

NAMES = {
    ("v1", "vanilla"): "denoiser_vanilla_reference",
    ("v1", "background"): "denoiser_split_reference",
    ("v1.5", "vanilla"): "denoiser_vanilla_reference",
    ("v1.5", "background"): "denoiser_split_bg_reference",
    ("v1.5", "foreground"): "denoiser_split_fg_reference",
    ("v1.5", "foreground+background"): "denoiser_split_fg_bg_reference",
    ("v2", "vanilla"): "denoiser_vanilla_reference",
    ("v2", "style"): "denoiser_vanilla_reference",
    ("v2", "background"): "denoiser_split_fg_bg_warp_reference",
    ("v2", "full"): "denoiser_split_fg_bg_warp_reference",
    ("v2", "foreground"): "denoiser_split_reference",
}


def test_variant_of_every_mode():
    assert set(NAMES) == {(generation, mode) for generation, modes in MODES.items() for mode in modes}
    for (generation, mode), name in NAMES.items():
        assert variant_of(generation, mode, "reference", False).module_name == name


@pytest.mark.parametrize(("guidance", "slots"), SLOTS.items())
def test_variant_of_guidance(guidance, slots):
    variant = variant_of("v2", "full", guidance, True)
    assert variant.slots == slots
    assert variant.module_name == f"denoiser_split_fg_bg_warp_merge_{guidance}"


def test_variant_of_ignores_merge_without_a_mask():
    assert variant_of("v2", "style", "none", True) == DenoiserVariant("none")


@pytest.mark.parametrize(("generation", "mode"), [("v1", "style"), ("v1.5", "full"), ("v2", "foreground+background")])
def test_variant_of_refuses_a_mode_of_another_generation(generation, mode):
    with pytest.raises(ValueError, match=rf"ColorizeDiffusion {generation} has no mode '.*'; it has vanilla, .*"):
        variant_of(generation, mode, "none", False)


def test_variants_of_names_each_denoiser_once():
    variants = variants_of("v2", ("vanilla", "style", "background", "full"), ("none", "both"), merge=True)
    assert [variant.module_name for variant in variants] == [
        "denoiser_vanilla_none",
        "denoiser_vanilla_both",
        "denoiser_split_fg_bg_warp_none",
        "denoiser_split_fg_bg_warp_merge_none",
        "denoiser_split_fg_bg_warp_both",
        "denoiser_split_fg_bg_warp_merge_both",
    ]


def test_a_variant_that_cannot_be():
    with pytest.raises(ValueError, match="belong to split cross-attention"):
        DenoiserVariant("none", warp=True)

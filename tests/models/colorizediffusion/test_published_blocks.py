"""ColorizeDiffusion's networks against what the published ones gave."""

from collections.abc import Iterator

import pytest

from saishiki.models.colorizediffusion import UNet
from tests.conformance import Case, cases_of
from tests.conformance_runners.colorizediffusion.network_blocks import BLOCKS, UNET, network

FAMILIES = ("colorizediffusion-v1", "colorizediffusion-v1.5", "colorizediffusion-v2")


def published_cases() -> Iterator[object]:
    for family in FAMILIES:
        cases = [case for case in cases_of(family) if case.module in BLOCKS]
        if not cases:
            yield pytest.param(None, id=family, marks=pytest.mark.skip(reason=f"no conformance cases of {family} here"))
        for case in cases:
            yield pytest.param(case, id=f"{family.removeprefix('colorizediffusion-')}-{case.name}")


@pytest.mark.parametrize("case", list(published_cases()))
def test_block_gives_the_published_numbers(case: Case) -> None:
    case.check(BLOCKS[case.module](case))


def failing(family: str, name: str) -> None:
    """Asserts that a case fails."""
    (case,) = (case for case in cases_of(family) if case.name == name)
    with pytest.raises(AssertionError):
        case.check(BLOCKS[case.module](case))


@pytest.mark.skipif(not list(cases_of(FAMILIES[2])), reason=f"no conformance cases of {FAMILIES[2]} here")
@pytest.mark.parametrize(
    ("name", "norm"),
    [("block_resblock_small", "input_blocks.1.0.in_layers.0"), ("block_transformer_small", "input_blocks.1.1.norm")],
)
def test_cases_notice_the_epsilon_of_another_norm(name: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = network(FAMILIES[2], UNET).get_submodule(norm)
    monkeypatch.setattr(layer, "eps", 1e-6 if layer.eps == 1e-5 else 1e-5)
    failing(FAMILIES[2], name)


@pytest.mark.parametrize("family", FAMILIES)
def test_cases_notice_the_other_rule_for_masks_at_the_threshold(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not list(cases_of(family)):
        pytest.skip(f"no conformance cases of {family} here")
    rules = {"foreground_above": "background_below", "background_below": "foreground_above"}
    own = UNet.selection
    monkeypatch.setattr(UNet, "selection", lambda unet, place: rules[own(unet, place)])
    failing(family, "unet_split_mask_equals_threshold")


@pytest.mark.skipif(not list(cases_of(FAMILIES[2])), reason=f"no conformance cases of {FAMILIES[2]} here")
@pytest.mark.parametrize("key", ["warp_modules.11.ff.2.bias", "style_modules.0.2.bias", "out.2.bias"])
def test_cases_notice_another_weight(key: str) -> None:
    parameter = network(FAMILIES[2], UNET).get_parameter(key)
    parameter.data += 0.05
    try:
        failing(FAMILIES[2], "unet_full")
    finally:
        parameter.data -= 0.05

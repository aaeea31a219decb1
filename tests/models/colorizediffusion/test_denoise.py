"""The hoisted denoiser against the published forward pass.

The budget is fp32 rounding: against the published pass in fp64, the hoisted one may be off by twice what the published
one is in fp32. Every test also sees that budget fail.
"""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor

from saishiki.models.colorizediffusion import UNet
from saishiki.models.colorizediffusion.denoise import Constants, denoise
from saishiki.models.colorizediffusion.guidance import Hoists
from saishiki.runtime.pipelines.colorizediffusion import GUIDANCES, MODES, DenoiserVariant, Generation, variants_of
from tests.models.colorizediffusion.scenes import Scene, hoisted, published, random_scene
from tests.models.colorizediffusion.small_networks import small_unet

BUDGET = 2.0
ALL_HOISTS = tuple(Hoists(guidance, prefix) for guidance, prefix in product((True, False), repeat=2))

VARIANTS = [
    pytest.param(generation, variant, id=f"{generation}-{variant.module_name}")
    for generation in MODES
    for variant in variants_of(generation, MODES[generation], GUIDANCES, merge=True)
    if variant.guidance == "both" or not variant.split
]


@cache
def unet64(generation: Generation) -> UNet:
    return deepcopy(small_unet(generation)).double()


def error(got: Tensor, truth: Tensor) -> float:
    """Relative, in the 2-norm."""
    return float((got.double() - truth).norm() / truth.norm())


@pytest.fixture(autouse=True)
def _without_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(("generation", "variant"), VARIANTS)
def test_denoise_gives_what_the_published_pass_gives(generation: Generation, variant: DenoiserVariant) -> None:
    unet = small_unet(generation)
    scene = random_scene(unet, split=variant.split)
    truth = published(unet64(generation), scene, variant, dtype=torch.float64)
    allowed = BUDGET * error(published(unet, scene, variant), truth)
    time, constants = hoisted(unet, scene, variant)
    assert allowed < 5e-6
    for hoists in ALL_HOISTS if variant.guidance in ("reference", "both") else (Hoists(),):
        got = denoise(unet, scene.x, time, constants, guidance=variant.guidance, hoists=hoists)
        assert error(got, truth) <= allowed, f"{hoists}"

    other_strength = replace(constants, values=[constants.values[0] * 1.001, *constants.values[1:]])
    assert error(denoise(unet, scene.x, time, other_strength, guidance=variant.guidance), truth) > allowed


FULL = DenoiserVariant("both", split=True, lora_fg=True, lora_bg=True, warp=True, merge=True)


@cache
def full_step() -> tuple[UNet, Scene, Tensor, Constants]:
    unet = small_unet("v2")
    scene = random_scene(unet, split=True)
    return unet, scene, *hoisted(unet, scene, FULL)


@cache
def full_prediction() -> Tensor:
    unet, scene, time, constants = full_step()
    return denoise(unet, scene.x, time, constants, guidance="both").double()


def changed_by(constants: Constants) -> float:
    """How far other constants move the prediction of the full step of v2."""
    unet, scene, time, _ = full_step()
    return error(denoise(unet, scene.x, time, constants, guidance="both"), full_prediction())


@pytest.mark.parametrize("name", ["keys", "values", "warp_keys", "warp_values"])
def test_denoise_uses_every_key_and_value(name: str) -> None:
    *_, constants = full_step()
    tensors = getattr(constants, name)
    # One of every place: those of a place run the same code.
    for index in range(0, len(tensors), 3):
        moved = [*tensors[:index], tensors[index] * 1.5, *tensors[index + 1 :]]
        assert changed_by(replace(constants, **{name: moved})) > 1e-5, f"{name}[{index}] is not used"


def test_denoise_uses_the_regions_of_every_place() -> None:
    *_, constants = full_step()
    assert constants.regions is not None
    for name, foreground in constants.regions.foreground.items():
        other = replace(constants.regions, foreground={**constants.regions.foreground, name: 1.0 - foreground})
        assert changed_by(replace(constants, regions=other)) > 1e-4, f"foreground_{name} is not used"


def test_a_modulation_of_zeros_is_no_style() -> None:
    unet, scene, time, constants = full_step()
    assert constants.modulation is not None
    zeros = replace(constants, modulation=torch.zeros_like(constants.modulation))
    without = replace(constants, modulation=None)
    got, expected = (denoise(unet, scene.x, time, given, guidance="both") for given in (zeros, without))
    torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)
    assert changed_by(without) > 1e-2


def test_rows_without_context_do_not_see_it() -> None:
    unet, scene, time, constants = full_step()
    other = replace(constants, keys=[k + 1.0 for k in constants.keys], values=[v * 3.0 for v in constants.values])
    before, after = (denoise(unet, scene.x, time, given, guidance="both").chunk(3) for given in (constants, other))
    torch.testing.assert_close(before[1], after[1], rtol=0.0, atol=0.0)
    assert all(error(after[slot], before[slot].double()) > 1e-2 for slot in (0, 2))


def test_pictures_of_a_batch_do_not_see_each_other() -> None:
    unet = small_unet("v2")
    together = random_scene(unet, split=True)
    time, constants = hoisted(unet, together, FULL)
    both = denoise(unet, together.x, time, constants, guidance="both").unflatten(0, (3, 2))
    swapped = Scene(*(_swapped(getattr(together, name)) for name in Scene.__dataclass_fields__))
    time, constants = hoisted(unet, swapped, FULL)
    got = denoise(unet, swapped.x, time, constants, guidance="both").unflatten(0, (3, 2))
    torch.testing.assert_close(got, both.flip(1), rtol=1e-4, atol=1e-4)


def _swapped(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return value.flip(0) if isinstance(value, Tensor) else [item.flip(0) for item in value]

"""What becomes of pictures and masks before any network."""

import numpy as np
import pytest
from PIL import Image

from saishiki.runtime.errors import ImageError
from saishiki.runtime.pipelines import Pictures
from saishiki.runtime.pipelines.colorizediffusion import ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.conditions import Needs
from saishiki.runtime.pipelines.colorizediffusion.given_masks import place_sketch_mask
from saishiki.runtime.pipelines.colorizediffusion.mask_networks import MaskNetworks
from saishiki.runtime.pipelines.colorizediffusion.masks import mask_to_latent
from saishiki.runtime.pipelines.colorizediffusion.preparation import Preparation
from tests.pictures import draw_sketch, paint_reference

SKETCH, REFERENCE, BACKGROUND = draw_sketch(60, 100), paint_reference(52, 38), paint_reference(40, 70, seed=3)
SKETCH_MASK, REFERENCE_MASK = np.zeros((60, 100), np.uint8), np.zeros((52, 38), np.uint8)
SKETCH_MASK[10:50, 20:60] = REFERENCE_MASK[5:30, 5:30] = 255
ALL = Needs(mask=True, background=True, style=True, maps=True)


def scenes(needs=ALL, *, sketches=(SKETCH,), references=(REFERENCE,), **options):
    given = {"sketch_mask": SKETCH_MASK, "reference_mask": REFERENCE_MASK, **options}
    pictures = Pictures(tuple(sketches), tuple(references), (0,) * len(sketches), 64, 128)
    return Preparation(pictures, ColorizeDiffusionOptions(**given), needs, MaskNetworks()).scenes()


def test_a_scene_with_everything():
    (scene,) = scenes()
    assert scene.sketch.shape == (1, 3, 64, 128)
    assert scene.box == (11, 0, 106, 64)
    np.testing.assert_array_equal(scene.reference.pixels(), REFERENCE)
    masked = scene.masked_reference.pixels()
    np.testing.assert_array_equal(masked[5:30, 5:30], 255)
    np.testing.assert_array_equal(masked[30:], REFERENCE[30:])
    placed = place_sketch_mask(SKETCH_MASK.astype(np.float32) / 255, scene.box, height=64, width=128)
    np.testing.assert_array_equal(scene.mask, mask_to_latent(placed))
    assert scene.mask.shape == (1, 1, 8, 16)


def test_a_vanilla_scene_has_no_more_than_it_needs():
    (scene,) = scenes(Needs(), background=BACKGROUND)
    assert (scene.background, scene.masked_reference, scene.mask) == (None, None, None)


def test_a_background_picture_takes_the_masked_references_place():
    (scene,) = scenes(background=BACKGROUND, padding_scale=2.0)
    np.testing.assert_array_equal(scene.background.pixels(), BACKGROUND)  # the padding is the reference's alone
    assert scene.masked_reference is None
    assert (scene.reference.height, scene.reference.width) == (52, 76)


def test_padding_widens_the_masked_reference_too():
    (plain,), (padded,) = scenes(), scenes(padding_scale=1.5)
    assert padded.reference.width == padded.masked_reference.width == 57
    np.testing.assert_array_equal(padded.masked_reference.pixels()[:, 9:47], plain.masked_reference.pixels())
    np.testing.assert_array_equal(padded.masked_reference.pixels()[:, :9], 255)


def test_remove_foreground_uses_the_backgrounds_own_mask():
    mask = np.zeros((40, 70), np.uint8)
    mask[:20] = 255
    (scene,) = scenes(background=BACKGROUND, reference_mask=mask, remove_foreground=True)
    np.testing.assert_array_equal(scene.background.pixels()[:20], 255)
    np.testing.assert_array_equal(scene.background.pixels()[20:], BACKGROUND[20:])


def test_keys_tell_pictures_apart_by_content(tmp_path):
    Image.fromarray(REFERENCE).save(tmp_path / "reference.png")
    (scene,), (from_file,) = scenes(), scenes(references=[tmp_path / "reference.png"])
    assert scene.reference.key == from_file.reference.key
    assert scene.masked_reference.key == from_file.masked_reference.key
    changes = [{"reference_threshold": 0.3}, {"padding_scale": 2.0}, {"reference_mask": 255 - REFERENCE_MASK}]
    others = [scenes(**change)[0].masked_reference.key for change in changes]
    assert len({scene.masked_reference.key, scene.reference.key, *others}) == 5


def test_one_of_each_or_one_for_all():
    sketches = (SKETCH, draw_sketch(30, 30))
    masks = [SKETCH_MASK, np.full((30, 30), 255, np.uint8)]
    first, second = scenes(sketches=sketches, references=(REFERENCE, REFERENCE), sketch_mask=masks)
    assert first.reference is second.reference
    assert (first.box, second.box) == ((11, 0, 106, 64), (32, 0, 64, 64))
    with pytest.raises(ImageError, match="the sketch mask is 100x60 px, but its picture is 30x30 px"):
        scenes(sketches=sketches, references=(REFERENCE, REFERENCE))


def test_without_a_sketch_its_mask_is_of_the_working_area():
    mask = np.zeros((64, 128), np.uint8)
    mask[:, :64] = 255
    (scene,) = scenes(sketches=(None,), sketch_mask=mask)
    np.testing.assert_array_equal(scene.mask, mask_to_latent((mask / np.float32(255))[None, None]))


def test_posteriors():
    (seeded,) = scenes(reference_seed=3)
    draws = [seeded.posterior.noise(draw, (4, 8, 16)) for draw in (0, 1)]
    assert draws[0].shape == draws[1].shape == (1, 4, 8, 16)
    assert abs(np.corrcoef(draws[0].ravel(), draws[1].ravel())[0, 1]) < 0.2
    np.testing.assert_array_equal(draws[1], scenes(reference_seed=3)[0].posterior.noise(1, (4, 8, 16)))
    noise = np.random.default_rng(0).standard_normal((2, 4, 8, 16)).astype(np.float32)
    first, second = scenes(
        sketches=(SKETCH, SKETCH), references=(REFERENCE, REFERENCE), reference_noise=[noise[:1], noise]
    )
    np.testing.assert_array_equal(second.posterior.noise(0, (4, 8, 16)), noise[:1])
    np.testing.assert_array_equal(second.posterior.noise(1, (4, 8, 16)), noise[1:])
    assert first.posterior.key(0) == second.posterior.key(0)
    assert first.posterior.key(1) != second.posterior.key(1)
    with pytest.raises(
        ValueError, match=r"reference_noise 1: expected floats \(2, 4, 8, 16\) or \(1, 4, 8, 16\), got int"
    ):
        scenes(sketches=(SKETCH, SKETCH), references=(REFERENCE, REFERENCE), reference_noise=[noise, noise.astype(int)])

import numpy as np
import pytest

from saishiki.runtime.errors import ImageError
from saishiki.runtime.pipelines.colorizediffusion.output import crop_image, remove_background
from saishiki.runtime.pipelines.colorizediffusion.placement import fit_box


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_crop_image_cuts_left_top_width_height() -> None:
    whole = image(64, 128)
    cut = crop_image(whole, fit_box(100, 50, height=64, width=128))
    assert cut.shape == (64, 32, 3)
    np.testing.assert_array_equal(cut, whole[:, 48:80])


def test_crop_image_cuts_every_picture_of_a_batch() -> None:
    batch = np.stack([image(64, 64), 255 - image(64, 64)])
    np.testing.assert_array_equal(crop_image(batch, (3, 5, 40, 20)), batch[:, 5:25, 3:43])


def test_remove_background_paints_below_the_threshold_white() -> None:
    whole, mask = image(4, 6), np.zeros((4, 6), np.float32)
    mask[2], mask[3] = 0.5, 0.7
    shown = remove_background(whole, mask, 0.5)
    assert np.all(shown[:2] == 255)
    np.testing.assert_array_equal(shown[2:], whole[2:])


def test_remove_background_refuses_a_mask_of_another_size() -> None:
    with pytest.raises(ImageError, match=r"a mask \(4, 4\) does not fit a picture \(4, 6\)"):
        remove_background(image(4, 6), np.zeros((4, 4), np.float32), 0.5)

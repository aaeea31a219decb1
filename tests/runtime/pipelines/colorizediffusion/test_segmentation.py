import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saishiki.runtime.errors import ImageError
from saishiki.runtime.pipelines.colorizediffusion.segmentation import (
    dilate_mask,
    reference_mask,
    reference_network_pixels,
    sketch_mask,
    sketch_network_pixels,
)


def logits_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 4, shape).astype(np.float32)


def test_sketch_network_sees_the_negated_sketch() -> None:
    sketch = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 128)).astype(np.float32)
    want = F.interpolate(-torch.from_numpy(sketch), (1024, 1024), mode="bicubic").numpy()
    np.testing.assert_allclose(sketch_network_pixels(sketch), want, atol=2e-6)


def test_sketch_mask_is_resized_after_the_sigmoid() -> None:
    logits = logits_of(1, 1, 96, 96)
    got = sketch_mask(logits, height=64, width=128)
    plane = F.interpolate(torch.from_numpy(logits).sigmoid(), (64, 128), mode="bicubic")
    np.testing.assert_allclose(got, plane.clamp(0, 1).numpy(), atol=2e-6)
    assert plane.max() > 1
    other = F.interpolate(torch.from_numpy(logits), (64, 128), mode="bicubic").sigmoid().numpy()
    assert np.abs(got - other).max() > 0.1


def test_sketch_mask_of_a_network_with_its_own_sigmoid() -> None:
    logits = logits_of(96, 96)
    probability = torch.from_numpy(logits).sigmoid().numpy()
    got = sketch_mask(probability, height=64, width=64, logits=False)
    np.testing.assert_allclose(got, sketch_mask(logits, height=64, width=64), atol=1e-6)


def test_reference_network_sees_imagenet_pixels() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (90, 1100, 3), dtype=np.uint8)
    unit = torch.from_numpy(rgb).float().permute(2, 0, 1)[None] / 255
    squashed = F.interpolate(unit, (1024, 1024), mode="bilinear", antialias=True)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    want = (squashed - mean[:, None, None]) / deviation[:, None, None]
    np.testing.assert_allclose(reference_network_pixels(rgb), want.numpy(), atol=1e-5)


@pytest.mark.parametrize("dilate", [True, False])
def test_reference_mask_is_at_the_pictures_own_size(dilate: bool) -> None:
    logits = logits_of(1, 1, 128, 128)
    got = reference_mask(logits, height=70, width=45, dilate=dilate)
    plane = F.interpolate(torch.from_numpy(logits).sigmoid(), (70, 45), mode="bilinear", antialias=True)
    want = F.max_pool2d(plane, 11, stride=1, padding=5) if dilate else plane
    np.testing.assert_allclose(got, want[0, 0].numpy(), atol=2e-6)


@pytest.mark.parametrize("size", [(30, 17), (5, 3), (1, 40)], ids=str)
def test_dilate_mask_is_an_11_px_max_filter(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)
    want = F.max_pool2d(torch.from_numpy(mask)[None], 11, stride=1, padding=5)[0].numpy()
    np.testing.assert_array_equal(dilate_mask(mask), want)


def test_dilate_mask_reaches_five_pixels() -> None:
    mask = np.zeros((21, 21), np.float32)
    mask[10, 10] = 1
    assert dilate_mask(mask).sum() == 11 * 11


def test_probability_of_large_logits_does_not_overflow() -> None:
    far = np.float32([[-1e4, 1e4]]).repeat(8, axis=0)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(reference_mask(far, height=8, width=2, dilate=False)[0], [0, 1])


def test_masks_refuse_several_planes() -> None:
    with pytest.raises(ImageError, match=r"expected one plane .* from the mask network, got \(1, 2, 8, 8\)"):
        sketch_mask(logits_of(1, 2, 8, 8), height=64, width=64)


def test_masks_refuse_values_that_are_not_finite() -> None:
    with pytest.raises(ImageError, match="NaN or infinite"):
        reference_mask(np.full((8, 8), np.nan, np.float32), height=64, width=64)

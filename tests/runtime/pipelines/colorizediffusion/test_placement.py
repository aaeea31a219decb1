import numpy as np
import pytest

from saishiki.runtime.errors import ImageError
from saishiki.runtime.pipelines.colorizediffusion.placement import fit_box, place_planes


@pytest.mark.parametrize(
    ("source", "target", "box"),
    [
        ((161, 100), (128, 128), (24, 0, 79, 127)),  # 161 (128 / 161) is 127.99... in floating point
        ((90, 160), (128, 192), (0, 10, 192, 108)),
        ((512, 512), (512, 512), (0, 0, 512, 512)),
        ((512, 512), (512, 768), (128, 0, 512, 512)),
        ((1000, 333), (512, 512), (171, 0, 170, 512)),
    ],
)
def test_fit_box_truncates_and_centres(source: tuple[int, int], target: tuple[int, int], box: tuple) -> None:
    assert fit_box(*source, height=target[0], width=target[1]) == box


def test_fit_box_loses_a_row_for_one_height_in_nine() -> None:
    short = sum(fit_box(h, 64, height=512, width=512)[3] == 511 for h in range(512, 2048))
    assert 0.05 < short / 1536 < 0.2


def test_fit_box_refuses_a_strip() -> None:
    with pytest.raises(ImageError, match="8x5000 px is too long a strip for 512x512 px"):
        fit_box(5000, 8, height=512, width=512)


def test_place_planes_leaves_the_fill_around_the_box() -> None:
    planes = np.full((2, 10, 20), 0.5, np.float32)
    placed = place_planes(planes, (0, 4, 16, 8), height=16, width=16, fill=-1)
    assert placed.shape == (1, 2, 16, 16)
    np.testing.assert_allclose(placed[0, :, 4:12], 0.5, atol=1e-6)
    assert np.all(placed[0, :, :4] == -1)
    assert np.all(placed[0, :, 12:] == -1)

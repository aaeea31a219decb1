import math

import numpy as np
import pytest

from saishiki.runtime.pipelines.colorizediffusion.sizes import size_embedding


def sinusoid(value: float) -> list[float]:
    angles = [value * math.exp(-math.log(10000) * i / 128) for i in range(128)]
    return [math.cos(a) for a in angles] + [math.sin(a) for a in angles]


@pytest.mark.parametrize(
    ("sizes", "ratios"),
    [
        ((300, 220, 128, 128), (300 / 128, 220 / 128)),
        ((512, 512, 128, 192), (512 / 128, 512 / 192)),
        # Smaller in height alone, and in width alone.
        ((100, 220, 128, 128), (228 / 128, 220 / 100 * 228 / 128)),
        ((129, 127, 128, 128), (257 / 128, 127 / 129 * 257 / 128)),
        ((90, 60, 192, 128), (282 / 192, 60 / 90 * 282 / 128)),
        ((90, 60, 128, 192), (282 / 128, 60 / 90 * 282 / 192)),
        ((128, 128, 128, 128), (1, 1)),
    ],
)
def test_size_embedding_is_two_sinusoids(sizes: tuple[int, ...], ratios: tuple[float, float]) -> None:
    got = size_embedding(*sizes)
    assert (got.shape, got.dtype) == ((1, 512), np.float32)
    np.testing.assert_allclose(got[0], [*sinusoid(ratios[0]), *sinusoid(ratios[1])], atol=2e-6)


def test_size_embedding_tells_height_from_width() -> None:
    assert np.abs(size_embedding(300, 220, 128, 128) - size_embedding(220, 300, 128, 128)).max() > 0.1

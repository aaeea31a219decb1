import pytest

from saishiki.runtime.plan.extents import Extent, Extents
from saishiki.runtime.plan.ops import Convolution, Pool
from saishiki.runtime.plan.time_model import Gpu, modelled_s

GPU = Gpu("test", bandwidth=1e12, gap_s=1e-6, convolution_flops={64: 1e14, 256: 4e14}, product_flops=5e13)


def extents(filters, taps, channels=1024):
    return Extents(
        {},
        {
            "x": Extent((1, 64, 64, channels), "float16"),
            "w": Extent((filters, taps, taps, channels), "float16"),
            "b": Extent((filters,), "float16"),
            "y": Extent((1, 64, 64, filters), "float16"),
        },
    )


@pytest.mark.parametrize(("filters", "taps", "rate"), [(64, 3, 1e14), (128, 3, 1e14), (256, 3, 4e14), (512, 1, 5e13)])
def test_products_take_what_their_rate_allows(filters, taps, rate):
    op = Convolution(x=("x",), weight="w", bias="b", out="y", padding=(taps // 2,) * 4)
    flops = 2 * 64 * 64 * filters * taps**2 * 1024
    assert modelled_s(op, extents(filters, taps), GPU) == pytest.approx(flops / rate + 1e-6)


def test_what_only_moves_takes_what_the_bandwidth_allows():
    sizes = Extents({}, {"x": Extent((1, 64, 64, 512), "float16"), "y": Extent((1, 32, 32, 512), "float16")})
    nbytes = 64 * 64 * 512 * 2 * 1.25
    assert modelled_s(Pool("x", "y"), sizes, GPU) == pytest.approx(nbytes / 1e12 + 1e-6)

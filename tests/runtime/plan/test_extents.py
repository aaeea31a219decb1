import numpy as np
import pytest

from saishiki.runtime.plan.extents import Extent, Strided, Tensors, resolve
from tests.runtime.plan.running import extents, strided

SIZES = {"batch": 2, "height": 32, "width": 16}


@pytest.mark.parametrize(
    ("dim", "value"),
    [
        ("0", 0),
        ("7", 7),
        ("height/8*width", 64),
        ("1 + height*width/64", 9),
        ("-1 + width/8", 1),
        ("8 + -2*width", -24),
        ("8 + 4*batch + height", 48),
    ],
)
def test_resolve(dim, value):
    assert resolve(dim, SIZES) == value


@pytest.mark.parametrize("dim", ["", "height-8", "8 +width", "8 + ", "8 + + 1", "2 * batch", "--1", "08", "height*0"])
def test_resolve_refuses_what_is_no_dim(dim):
    """Not read as something else: 8 +width is not 8 * width."""
    with pytest.raises(ValueError, match="expected a dim such as 3, height or height/8, got"):
        resolve(dim, SIZES)


def test_resolve_with_a_remainder():
    with pytest.raises(ValueError, match=r"width/3 is not a whole number"):
        resolve("1 + width/3", SIZES)


def test_resolve_of_an_unknown_symbol():
    with pytest.raises(KeyError, match="depth"):
        resolve("depth/2", SIZES)


@pytest.mark.parametrize(("dtype", "nbytes"), [("float16", 48), ("float32", 96)])
def test_extent(dtype, nbytes):
    extent = Extent((2, 3, 4), dtype)
    assert (extent.size, extent.nbytes) == (24, nbytes)


def test_extents():
    tensors = extents(SIZES, a=((2, 3), "float16"), b=((5,), "float32"))
    assert tensors.shape("a") == (2, 3)
    assert tensors.nbytes("a", "b", "b") == 12 + 20 + 20
    with pytest.raises(KeyError, match="c"):
        tensors.nbytes("c")


def test_strided_operands_count_what_they_repeat_once():
    tensors = extents(SIZES, a=((2, 32, 16), "float32"))
    part = Strided("a", ("batch", "height", "2", "width/2"), ("512", "width", "0", "1"), "8")
    assert tensors.strided_shape(part) == (2, 32, 2, 8)
    assert tensors.strided_nbytes(part) == 2 * 32 * 8 * 4


def test_view():
    """Columns 1 to 3 of both rows, transposed, each twice."""
    rows = np.arange(10).reshape(2, 5)
    view = Tensors({}, {"a": rows}).view(strided("a", (3, 2, 2), (1, 0, 5), 1))
    assert view.tolist() == [[[i, 5 + i]] * 2 for i in (1, 2, 3)]


def test_view_is_not_a_copy():
    rows = np.zeros((2, 5))
    Tensors({}, {"a": rows}).view(strided("a", (2, 2), (5, 1), 3))[:] = 1
    assert rows.tolist() == [[0, 0, 0, 1, 1]] * 2


def test_view_by_sizes():
    part = Strided("a", ("batch", "width/8"), ("width", "8"), "1 + width/4")
    view = Tensors(SIZES, {"a": np.arange(32)}).view(part)
    assert view.tolist() == [[5, 13], [21, 29]]


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((2, 6), (5, 1), 0), ((2, 5), (5, 1), 1), ((3, 1), (5, 1), 0), ((2, 2), (9, 1), 0), ((1,), (1,), 10)],
    ids=str,
)
def test_view_beyond_its_buffer(shape, strides, offset):
    tensors = Tensors(SIZES, {"a": np.arange(10)})
    with pytest.raises(ValueError, match=r"buffer='a'.* ends at element 1\d of 10, at \{'batch': 2"):
        tensors.view(strided("a", shape, strides, offset))


def test_view_before_its_buffer():
    with pytest.raises(ValueError, match="begins at element -1, before its buffer"):
        Tensors({}, {"a": np.arange(10)}).view(Strided("a", ("2",), ("1",), "-1"))


def test_view_of_an_unknown_buffer():
    with pytest.raises(KeyError, match="b"):
        Tensors({}, {"a": np.zeros(1)}).view(strided("b", (1,), (1,)))

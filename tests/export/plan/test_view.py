import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saishiki.export.plan.dims import ONE, ZERO, Dim
from saishiki.export.plan.view import Run, View, dense
from saishiki.runtime.plan.extents import Strided, Tensors, resolve

SIZES = {"batch": 2, "height": 8, "width": 12}
BATCH, HEIGHT, WIDTH = map(Dim.of, SIZES)
IMAGES = BATCH, HEIGHT / 4, WIDTH / 4, Dim.of(5)
PIXELS = HEIGHT * WIDTH / 16


def dims(*values: Dim | int) -> tuple[Dim, ...]:
    return tuple(map(Dim.of, values))


def shape_of(values: tuple[Dim, ...]) -> tuple[int, ...]:
    return tuple(resolve(str(dim), SIZES) for dim in values)


def whole(*values: Dim | int) -> View:
    return dense("x", "float16", dims(*values))


def array(*values: Dim | int):
    """What ``whole`` of the same dims reads of 0, 1, 2, ..."""
    shape = shape_of(dims(*values))
    return np.arange(math.prod(shape)).reshape(shape)


def assert_reads(view: View, expected) -> None:
    """The shape, and the numbers of a buffer of 0, 1, 2, ... in which nothing is further than needed."""
    assert shape_of(view.shape) == expected.shape
    read = Tensors(SIZES, {"x": np.arange(expected.max() + 1)}).view(view.strided())
    np.testing.assert_array_equal(read.reshape(expected.shape), expected)


def test_dense():
    view = whole(*IMAGES)
    assert view.shape == IMAGES
    strides = ("5*height*width/16", "5*width/4", "5", "1")
    assert view.strided() == Strided("x", ("batch", "height/4", "width/4", "5"), strides)
    assert_reads(view, array(*IMAGES))


def test_axes_of_length_1_have_no_runs():
    assert whole(1, 3, 1).axes == ((), (Run(Dim.of(3), ONE),), ())
    assert whole(1, 3, 1).strided() == Strided("x", ("1", "3", "1"), ("0", "1", "0"))


def test_cast():
    view = whole(2, 3)
    assert not view.is_cast
    assert view.cast("float32").is_cast
    assert view.cast("float32").stored == "float16"
    assert view.cast("float32").cast("float16") == view


def test_transpose():
    assert_reads(whole(*IMAGES).transpose((0, 3, 1, 2)), array(*IMAGES).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "target",
    [
        dims(BATCH, PIXELS, 5),
        dims(BATCH * HEIGHT / 4, WIDTH * 5 / 4),
        dims(BATCH * PIXELS * 5),
        dims(1, BATCH, 1, PIXELS * 5, 1),
        dims(BATCH, HEIGHT / 8, 2, WIDTH / 4, 5),
        dims(BATCH, 2, HEIGHT / 8, 3, WIDTH / 12, 1, 5),
    ],
    ids=lambda target: ",".join(map(str, target)),
)
def test_reshape_of_what_is_dense(target):
    view = whole(*IMAGES).reshape(target)
    assert view == whole(*target)
    assert_reads(view, array(*target))
    assert view.reshape(IMAGES) == whole(*IMAGES)


def test_reshape_of_images_to_tokens():
    """(B, C, H, W) that lie as (B, H, W, C): pixels are one run."""
    images = whole(*IMAGES).transpose((0, 3, 1, 2))
    tokens = images.reshape(dims(BATCH, 5, PIXELS))
    assert tokens == whole(BATCH, PIXELS, 5).transpose((0, 2, 1))
    assert_reads(tokens, array(*IMAGES).transpose(0, 3, 1, 2).reshape(2, 5, 6))


def test_reshape_to_heads_and_back():
    split = whole(BATCH, PIXELS, 6).reshape(dims(BATCH, PIXELS, 2, 3))
    heads = split.transpose((0, 2, 1, 3))
    assert_reads(heads, array(BATCH, PIXELS, 6).reshape(2, 6, 2, 3).transpose(0, 2, 1, 3))
    assert heads.transpose((0, 2, 1, 3)).reshape(dims(BATCH, PIXELS, 6)) == whole(BATCH, PIXELS, 6)


def test_an_axis_of_several_runs_is_several_axes_of_an_operand():
    view = whole(2, 3, 5).transpose((2, 1, 0)).reshape(dims(5, 6))
    assert view.shape == dims(5, 6)
    assert view.strided() == Strided("x", ("5", "3", "2"), ("1", "5", "15"))
    assert_reads(view, array(2, 3, 5).transpose(2, 1, 0).reshape(5, 6))


@pytest.mark.parametrize(
    ("own", "target"),
    [
        (dims(2, 3), dims(3, 2)),
        (dims(4, 6, 5), dims(8, 15)),
        (dims(2, 9, 2), dims(3, 2, 6)),
        (dims(BATCH, 6, 4), dims(BATCH, 8, 3)),
        (dims(BATCH, WIDTH / 4, 5), dims(BATCH, 5, WIDTH / 4)),
    ],
    ids=str,
)
def test_reshape_to_lengths_that_do_not_divide_one_another(own, target):
    view = whole(*own).reshape(target)
    assert view == whole(*target)
    assert_reads(view, array(*target))


def test_reshape_takes_together_only_what_lies_together():
    """Rows of 4 of which 3 are read."""
    view = whole(2, 4).slice(1, ZERO, Dim.of(3))
    with pytest.raises(ValueError, match="a run of 2 is not to be divided into rows of 3"):
        view.reshape(dims(3, 2))


@pytest.mark.parametrize(
    ("view", "target", "message"),
    [
        (whole(2, 3).transpose((1, 0)), dims(2, 3), "a run of 3 is not to be divided into rows of 2"),
        (whole(HEIGHT, WIDTH).transpose((1, 0)), dims(HEIGHT, WIDTH), "a run of width is not to be divided into rows"),
        (whole(2, 3), dims(2, 3, 2), r"\['2', '3', '2'\] holds more elements than there are"),
        (whole(2, 3), dims(12), "holds more elements than there are"),
        (whole(2, 3), dims(2), "holds fewer elements than there are"),
        (whole(2, 3), (), "holds fewer elements than there are"),
        (whole(2, 3), dims(5), "a run of 6 is not to be divided into rows of 5"),
        (whole(BATCH, 3), dims(BATCH, WIDTH), "holds more elements than there are"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reshape_that_strides_cannot_do(view, target, message):
    with pytest.raises(ValueError, match=message):
        view.reshape(target)


@pytest.mark.parametrize(("axis", "start", "length"), [(0, 1, 1), (1, 0, 1), (2, 1, 2), (3, 2, 3), (3, 0, 5)])
def test_slice(axis, start, length):
    part = [slice(None)] * 4
    part[axis] = slice(start, start + length)
    view = whole(*IMAGES).slice(axis, Dim.of(start), Dim.of(length))
    assert_reads(view, array(*IMAGES)[tuple(part)])


def test_slices_of_several_axes():
    """Their offsets are a sum, which is written as one and read as one."""
    view = whole(*IMAGES).slice(3, Dim.of(2), Dim.of(3)).slice(1, ONE, HEIGHT / 4 - 1)
    assert str(view.offset) == "2 + 5*width/4"
    assert view.strided().shape[1] == "-1 + height/4"
    assert_reads(view, array(*IMAGES)[:, 1:, :, 2:])


def test_slice_of_a_half():
    view = whole(BATCH, PIXELS, 4).slice(1, PIXELS / 2, PIXELS / 2)
    assert_reads(view, array(BATCH, PIXELS, 4)[:, 3:])


def test_slice_of_an_axis_of_several_runs():
    view = whole(2, 3).transpose((1, 0)).reshape(dims(6))
    with pytest.raises(ValueError, match="cannot take a part of an axis of 2 runs"):
        view.slice(0, ZERO, Dim.of(2))


def test_insert_and_remove():
    view = whole(2, 3)
    for axis in range(3):
        wider = view.insert(axis)
        assert_reads(wider, np.expand_dims(array(2, 3), axis))
        assert wider.remove(axis) == view


def test_remove_of_a_longer_axis():
    with pytest.raises(ValueError, match=r"axis 1 of .* is longer than 1"):
        whole(1, 3).remove(1)


@pytest.mark.parametrize(
    ("own", "target"),
    [
        (dims(5), dims(BATCH, 3, 5)),
        (dims(BATCH, 1, 5), dims(BATCH, PIXELS, 5)),
        (dims(1), dims(BATCH, HEIGHT, 1)),
        (dims(BATCH, 5), dims(BATCH, 5)),
        ((), dims(2, 3)),
    ],
    ids=str,
)
def test_expand(own, target):
    assert_reads(whole(*own).expand(target), np.broadcast_to(array(*own), shape_of(target)))


@pytest.mark.parametrize("target", [dims(2, 4), dims(2, 1), dims(HEIGHT, 3)], ids=str)
def test_expand_that_does_not_broadcast(target):
    with pytest.raises(ValueError, match="does not broadcast to"):
        whole(2, 3).expand(target)


def test_expand_to_fewer_axes():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        whole(2, 3).expand(dims(3))


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("times", [1, 2, 3])
def test_repeat_and_tile(axis, times):
    view, numbers = whole(*IMAGES), array(*IMAGES)
    copies = [times if i == axis else 1 for i in range(4)]
    assert_reads(view.repeat(axis, times), numbers.repeat(times, axis=axis))
    assert_reads(view.tile(axis, times), np.tile(numbers, copies))
    assert view.repeat(axis, times).shape[axis] == IMAGES[axis] * times
    if times == 1:
        assert view.repeat(axis, 1) == view.tile(axis, 1) == view


def test_upsampled_images():
    view = whole(*IMAGES).transpose((0, 3, 1, 2)).repeat(2, 2).repeat(3, 2)
    assert view.strided() == Strided(
        "x",
        ("batch", "5", "height/4", "2", "width/4", "2"),
        ("5*height*width/16", "1", "5*width/4", "0", "5", "0"),
    )
    assert_reads(view, array(*IMAGES).transpose(0, 3, 1, 2).repeat(2, axis=2).repeat(2, axis=3))


def test_upsampling_by_hand_is_upsampling():
    """(B, C, H, 1, W, 1) expanded to (B, C, H, 2, W, 2), reshaped to (B, C, 2H, 2W)."""
    images = whole(*IMAGES).transpose((0, 3, 1, 2))
    high, wide = HEIGHT / 4, WIDTH / 4
    expanded = images.insert(3).insert(5).expand(dims(BATCH, 5, high, 2, wide, 2))
    assert expanded.reshape(dims(BATCH, 5, high * 2, wide * 2)) == images.repeat(2, 2).repeat(3, 2)


Pair = tuple[View, np.ndarray]
REFUSALS = ("is not to be divided", "axis of several", "cannot take a part", "more elements", "fewer elements")


def factored(draw: st.DrawFn, total: int) -> list[int]:
    factors = []
    while total > 1 and len(factors) < 4:
        factors.append(draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0])))
        total //= factors[-1]
    return [*factors, total]


def change(draw: st.DrawFn, view: View, numbers: np.ndarray) -> Pair:
    """One change of a view and the same of an array."""
    axis = draw(st.integers(0, numbers.ndim - 1))
    length = numbers.shape[axis]
    times = draw(st.integers(1, 3))
    match draw(st.sampled_from(["transpose", "reshape", "slice", "insert", "expand", "repeat", "tile"])):
        case "transpose":
            order = draw(st.permutations(range(numbers.ndim)))
            return view.transpose(tuple(order)), numbers.transpose(order)
        case "reshape":
            shape = factored(draw, numbers.size)
            return view.reshape(dims(*shape)), numbers.reshape(shape)
        case "slice":
            start = draw(st.integers(0, length - 1))
            count = draw(st.integers(1, length - start))
            return view.slice(axis, Dim.of(start), Dim.of(count)), numbers.take(range(start, start + count), axis)
        case "insert":
            return view.insert(axis), np.expand_dims(numbers, axis)
        case "expand":
            shape = (times, *(times if n == 1 else n for n in numbers.shape))
            return view.expand(dims(*shape)), np.broadcast_to(numbers, shape)
        case "repeat":
            return view.repeat(axis, times), numbers.repeat(times, axis)
        case _:
            return view.tile(axis, times), np.tile(numbers, [times if i == axis else 1 for i in range(numbers.ndim)])


@given(st.data())
def test_any_changes_in_a_row(data):
    """What strides cannot do is refused, all else reads as numpy's."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    view, numbers = whole(*shape), array(*shape)
    for _ in range(data.draw(st.integers(1, 6))):
        try:
            after = change(data.draw, view, numbers)
        except ValueError as refused:
            assert any(refusal in str(refused) for refusal in REFUSALS)  # noqa: PT017
            continue
        if after[1].size <= 2000:
            view, numbers = after
    assert_reads(view, numbers)

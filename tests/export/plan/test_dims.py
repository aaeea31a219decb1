from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from saishiki.export.plan.dims import ONE, ZERO, Dim, product
from saishiki.runtime.plan.extents import resolve
from saishiki.runtime.signature import resolve_dim

SIZES = {"batch": 3, "height": 64, "width": 40}
BATCH, HEIGHT, WIDTH = map(Dim.of, SIZES)


def value(dim: Dim) -> Fraction:
    """At ``SIZES``, by its terms."""
    total = Fraction(0)
    for powers, factor in dim.terms:
        for symbol, power in powers:
            factor *= Fraction(SIZES[symbol]) ** power
        total += factor
    return total


products = st.builds(
    lambda factors, number, divisor: product(factors) * number / divisor,
    st.lists(st.sampled_from([BATCH, HEIGHT, WIDTH]), max_size=3),
    st.integers(1, 100),
    st.sampled_from([1, 2, 3, 4, 8, 64]),
)
dims = st.lists(st.tuples(products, st.sampled_from([-1, 1])), max_size=4).map(
    lambda terms: sum((term * sign for term, sign in terms), ZERO)
)


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (Dim.of(0), "0"),
        (Dim.of(7), "7"),
        (Dim.of(-7), "-7"),
        (Dim.of("height/8"), "height/8"),
        (Dim.of("2*height/16"), "height/8"),
        (HEIGHT * WIDTH / 64, "height*width/64"),
        (WIDTH * 3 / 8 * HEIGHT, "3*height*width/8"),
        (HEIGHT * HEIGHT, "height*height"),
        (Dim.of(3) / HEIGHT, "3/height"),
        (ONE / HEIGHT / HEIGHT, "1/height/height"),
        (HEIGHT * WIDTH / 64 + 1, "1 + height*width/64"),
        (WIDTH - 1, "-1 + width"),
        (WIDTH - HEIGHT * 2, "-2*height + width"),
        (HEIGHT - HEIGHT, "0"),
        (ZERO * HEIGHT, "0"),
        (ZERO / HEIGHT, "0"),
    ],
    ids=str,
)
def test_arithmetic_and_text(dim, text):
    assert str(dim) == text
    assert Dim.of(text) == dim


def test_equal_dims_are_equal_however_they_came_about():
    assert HEIGHT * WIDTH / 8 == WIDTH / 8 * HEIGHT == Dim.of("height/2*width/4")
    assert hash(HEIGHT + 1 - 1) == hash(HEIGHT)
    assert HEIGHT != WIDTH
    assert HEIGHT != HEIGHT * 2


@given(dims)
def test_text_resolves_to_the_value(dim):
    assume(all(value(Dim((term,))).denominator == 1 for term in dim.terms))
    assert resolve(str(dim), SIZES) == value(dim)


@given(products)
def test_text_of_a_product_is_a_dim_of_a_signature(dim):
    assume(value(dim).denominator == 1)
    assert resolve_dim(str(dim), SIZES) == value(dim)


@given(dims)
def test_text_round_trip(dim):
    assert Dim.of(str(dim)) == dim


@given(dims, dims, products)
def test_arithmetic_is_that_of_the_values(left, right, divisor):
    assert value(left + right) == value(left) + value(right)
    assert value(left - right) == value(left) - value(right)
    assert value(left * right) == value(left) * value(right)
    assert value(left / divisor) == value(left) / value(divisor)
    assert left - left == ZERO
    assert left * divisor / divisor == left


@pytest.mark.parametrize("padded", range(-3, 4))
@pytest.mark.parametrize("by", [1, 2, 3, 8])
def test_floor_division_rounds_what_has_no_size(padded, by):
    """Where sizes are multiples of the divisor: 8 * 3 is one of all."""
    dim = HEIGHT + padded
    assert resolve(str(dim // by), {"height": 48}) == (48 + padded) // by


def test_floor_division_of_a_convolutions_lengths():
    half = (WIDTH / 8 + 2 - 3) // 2 + 1
    assert half == WIDTH / 16
    assert Dim.of(7) // 2 == Dim.of(3)
    assert Dim.of(-7) // 2 == Dim.of(-4)


@pytest.mark.parametrize("divide", [Dim.__truediv__, Dim.__floordiv__])
def test_division_by_a_sum(divide):
    with pytest.raises(ValueError, match=r"1 \+ height is not a product of sizes"):
        divide(WIDTH, HEIGHT + 1)


def test_division_by_zero():
    with pytest.raises(ZeroDivisionError):
        WIDTH / 0


def test_product():
    assert product([HEIGHT, Dim.of(2), WIDTH / 8]) == Dim.of("height*width/4")
    assert product([]) == ONE


def test_numbers():
    assert [Dim.of(n).number for n in (-2, 0, 5)] == [-2, 0, 5]
    assert (HEIGHT / HEIGHT).number == 1
    assert [dim.is_number for dim in (ZERO, Dim.of(3), HEIGHT, HEIGHT + 1)] == [True, True, False, False]


@pytest.mark.parametrize("dim", [HEIGHT / 8, ONE / 2], ids=str)
def test_what_is_no_whole_number(dim):
    with pytest.raises(ValueError, match=rf"expected a number, got {dim}"):
        _ = dim.number


def test_a_sum_is_no_number():
    with pytest.raises(ValueError, match=r"1 \+ height is not a product of sizes"):
        _ = (HEIGHT + 1).number


@pytest.mark.parametrize(
    ("dim", "other", "expected"),
    [
        (Dim.of(6), Dim.of(3), True),
        (Dim.of(6), Dim.of(4), False),
        (HEIGHT * WIDTH, HEIGHT, True),
        (HEIGHT * WIDTH, HEIGHT / 8, True),
        (HEIGHT, WIDTH, False),
        (Dim.of(8), HEIGHT, False),
        (HEIGHT, Dim.of(8), True),
        (HEIGHT / 8, HEIGHT / 16, True),
        (HEIGHT / 16, HEIGHT / 8, False),
        (HEIGHT + 1, ONE, False),
        (HEIGHT, HEIGHT + 1, False),
        (HEIGHT, ZERO, False),
        (ZERO, HEIGHT, False),
    ],
    ids=str,
)
def test_is_multiple_of(dim, other, expected):
    assert dim.is_multiple_of(other) is expected


@pytest.mark.parametrize("text", ["", "height-8", "2 * batch", "height/", "/8", "Height", "1 +height", "--1", "1.5"])
def test_malformed_text(text):
    with pytest.raises(ValueError, match="expected a dim such as 3, height or height/8, got"):
        Dim.of(text)

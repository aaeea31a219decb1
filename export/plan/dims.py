"""Symbolic lengths: products of sizes and a number, such as ``2*batch`` or ``height*width/64``, and sums of them.

Sizes are multiples of whatever a network divides them by, so that floor division by a number leaves a rest in the
constant term alone: ``(width/8 - 1) // 2 + 1`` is ``width/16``.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Union

_FACTOR = r"(?:[a-z_]+|\d+)"
_PRODUCT = re.compile(rf"-?{_FACTOR}(?:[*/]{_FACTOR})*")
_TERM = re.compile(rf"([*/]?)({_FACTOR})")

DimLike = Union["Dim", int]
Powers = tuple[tuple[str, int], ...]
"""``symbol ** power`` for each symbol of a product, sorted by symbol, no power 0."""


@dataclass(frozen=True)
class Dim:
    """A sum of products: each by its powers with a factor that is not 0, sorted."""

    terms: tuple[tuple[Powers, Fraction], ...]

    @classmethod
    def of(cls, value: "DimLike | str") -> "Dim":
        """A dim from a number, or from its text: as in a signature, or as ``str`` gives it."""
        if isinstance(value, Dim):
            return value
        if isinstance(value, int):
            return _sum({(): Fraction(value)})
        return reduce(Dim.__add__, map(_read_product, value.split(" + ")))

    def __mul__(self, other: DimLike) -> "Dim":
        products: dict[Powers, Fraction] = {}
        for powers, factor in self.terms:
            for others, times in Dim.of(other).terms:
                both = _times(powers, others, 1)
                products[both] = products.get(both, Fraction(0)) + factor * times
        return _sum(products)

    def __truediv__(self, other: DimLike) -> "Dim":
        """The exact quotient; raises ``ValueError`` where the other is a sum."""
        by, divisor = Dim.of(other).product
        return _sum({_times(powers, by, -1): factor / divisor for powers, factor in self.terms})

    def __floordiv__(self, other: DimLike) -> "Dim":
        """The quotient rounded down, where the sizes are multiples of what they are divided by."""
        exact = self / other
        return _sum({powers: factor if powers else Fraction(factor.__floor__()) for powers, factor in exact.terms})

    def __add__(self, other: DimLike) -> "Dim":
        total = dict(self.terms)
        for powers, factor in Dim.of(other).terms:
            total[powers] = total.get(powers, Fraction(0)) + factor
        return _sum(total)

    def __sub__(self, other: DimLike) -> "Dim":
        return self + Dim.of(other) * -1

    @property
    def product(self) -> tuple[Powers, Fraction]:
        """Its powers and its factor; raises ``ValueError`` where it is a sum."""
        if len(self.terms) > 1:
            raise ValueError(f"{self} is not a product of sizes")
        return self.terms[0] if self.terms else ((), Fraction(0))

    @property
    def is_number(self) -> bool:
        """Whether it has no symbols."""
        return all(not powers for powers, _ in self.terms)

    @property
    def number(self) -> int:
        """Its value; raises ``ValueError`` where it has symbols, or is no whole number."""
        powers, factor = self.product
        if powers or factor.denominator != 1:
            raise ValueError(f"expected a number, got {self}")
        return int(factor)

    def is_multiple_of(self, other: "Dim") -> bool:
        """Whether ``self / other`` may be a length: no symbol below the line, and no fraction unless it has symbols."""
        if len(self.terms) != 1 or len(other.terms) != 1:
            return False
        powers, factor = (self / other).product
        return all(power > 0 for _, power in powers) and (factor.denominator == 1 or bool(powers))

    def __str__(self) -> str:
        return " + ".join(_text(powers, factor) for powers, factor in self.terms) or "0"


def _sum(terms: dict[Powers, Fraction]) -> Dim:
    return Dim(tuple(sorted((powers, factor) for powers, factor in terms.items() if factor)))


def _read_product(text: str) -> Dim:
    if _PRODUCT.fullmatch(text) is None:
        raise ValueError(f"expected a dim such as 3, height or height/8, got {text!r}")
    dim = Dim.of(-1 if text.startswith("-") else 1)
    for operator, term in _TERM.findall(text):
        factor = Dim.of(int(term)) if term.isdigit() else _sum({((term, 1),): Fraction(1)})
        dim = dim / factor if operator == "/" else dim * factor
    return dim


def _times(powers: Powers, others: Powers, sign: int) -> Powers:
    total = dict(powers)
    for symbol, power in others:
        total[symbol] = total.get(symbol, 0) + sign * power
    return tuple(sorted((symbol, power) for symbol, power in total.items() if power))


def _text(powers: Powers, factor: Fraction) -> str:
    above = [symbol for symbol, power in powers for _ in range(power)]
    below = [symbol for symbol, power in powers for _ in range(-power)]
    if factor.numerator != 1 or not above:
        above.insert(0, str(factor.numerator))
    if factor.denominator != 1:
        below.insert(0, str(factor.denominator))
    return "/".join(["*".join(above), *below])


ZERO = Dim.of(0)
ONE = Dim.of(1)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dims; 1 of none."""
    return reduce(Dim.__mul__, dims, ONE)

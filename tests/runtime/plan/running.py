"""Runs one operation of a plan on small arrays, and holds what it writes to fp64."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from saishiki.runtime.plan.extents import Extent, Extents, Strided, Tensors
from saishiki.runtime.plan.ops import Op
from saishiki.runtime.signature import Array, Sizes

NO_SIZES: Sizes = {}


def draw(*shape: int, seed: int = 0, mean: float = 0.0, scale: float = 1.0, dtype: str = "float16") -> Array:
    """Normal numbers about a mean."""
    return (np.random.default_rng(seed).normal(size=shape) * scale + mean).astype(dtype)


def strided(buffer: str, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Strided:
    """An operand whose numbers are no symbols."""
    numbers = tuple(map(str, shape)), tuple(map(str, strides))
    return Strided(buffer, *numbers, str(offset)) if offset else Strided(buffer, *numbers)


def dense(buffer: str, *shape: int) -> Strided:
    """All of a buffer of that shape."""
    return strided(buffer, shape, tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape))))


def compute(
    op: Op,
    arrays: Mapping[str, Array],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: str = "float32",
    sizes: Sizes = NO_SIZES,
) -> dict[str, Array]:
    """What an operation writes into arrays of these shapes, which are full of NaN before."""
    written = {name: np.full(shape, np.nan, dtype) for name, shape in shapes.items()}
    assert set(op.writes()) == written.keys()
    op.compute(Tensors(sizes, {**arrays, **written}))
    return written


def assert_computes(
    op: Op,
    arrays: Mapping[str, Array],
    truth: Mapping[str, Any],
    *,
    sizes: Sizes = NO_SIZES,
    tolerance: float = 4e-6,
) -> None:
    """fp32 results are those of fp64, NaN where nothing is to be written; fp16 results are these, rounded once.

    Args:
        truth: fp64 arrays or tensors.
        tolerance: relative to the largest number, at least to 1.
    """
    expected = {name: np.asarray(values, np.float64) for name, values in truth.items()}
    shapes = {name: values.shape for name, values in expected.items()}
    exact = compute(op, arrays, shapes, sizes=sizes)
    for name, values in expected.items():
        largest = max(1.0, float(np.nanmax(np.abs(values))))
        np.testing.assert_allclose(exact[name], values, rtol=0, atol=tolerance * largest, err_msg=name)
    for name, rounded in compute(op, arrays, shapes, dtype="float16", sizes=sizes).items():
        assert_rounded_once(rounded, exact[name])


def assert_rounded_once(rounded: Array, exact: Array) -> None:
    """Each number is the nearest of its dtype, ties either way; twice rounded ones would be further off."""
    written = ~np.isnan(rounded)
    assert (written == ~np.isnan(exact)).all()
    spacing = np.spacing(np.abs(rounded[written])).astype(np.float64)
    assert np.max(np.abs(rounded[written] - exact[written].astype(np.float64)) / spacing) <= 0.5 + 1e-3


def extents(sizes: Sizes = NO_SIZES, **tensors: tuple[tuple[int, ...], str]) -> Extents:
    """The tensors of an operation by shape and dtype."""
    return Extents(sizes, {name: Extent(shape, dtype) for name, (shape, dtype) in tensors.items()})

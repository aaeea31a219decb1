"""Runs the launches of one operation in Triton's interpreter, and holds what they write to its reference."""

from collections.abc import Mapping

import numpy as np

from saishiki.runtime.backends.launches import launches_of, workspaces_of
from saishiki.runtime.backends.launches.group_norm import TICKETS
from saishiki.runtime.plan.extents import Tensors
from saishiki.runtime.plan.ops import AnyOp
from saishiki.runtime.signature import Array, Sizes
from tests.runtime.backends.interpreted_device import InterpretedDevice
from tests.runtime.plan.running import NO_SIZES, extents

Shape = tuple[int, ...]
FLOOR = 2.0**-16


def launched(
    op: AnyOp, arrays: Mapping[str, Array], written: Mapping[str, Array], *, sizes: Sizes = NO_SIZES
) -> tuple[dict[str, Array], list[str]]:
    """What the launches of an operation leave in copies of ``written``, and which kernels they are.

    What they read must be as it was, as must be the tickets, and nothing be written behind the end of any tensor.
    """
    device = InterpretedDevice()
    tensors = {**arrays, **written}
    held = {name: device.allocate(array.nbytes) for name, array in tensors.items()}
    for name, array in tensors.items():
        device.upload(held[name], array)
    known = extents(sizes, **{name: (array.shape, str(array.dtype)) for name, array in tensors.items()})
    needed = workspaces_of(op, known, sms=device.multiprocessors)
    held |= {name: device.allocate(nbytes) for name, nbytes in needed.items()}
    tickets = np.zeros(needed.get(TICKETS, 0), np.uint8)
    if TICKETS in held:
        device.upload(held[TICKETS], tickets)
    for launch in launches_of(op, known, lambda name: held[name].address, sms=device.multiprocessors):
        device.launch(launch.kernel, **launch.arguments)
    after = {name: np.empty_like(array) for name, array in tensors.items()}
    for name, array in after.items():
        device.download(held[name], array)
    for name, array in arrays.items():
        np.testing.assert_array_equal(after[name], array, err_msg=f"{name} was written to")
    if TICKETS in held:
        device.download(held[TICKETS], tickets)
    assert not tickets.any()
    assert device.guards_are_whole()
    return {name: after[name] for name in written}, device.launched


def computed(
    op: AnyOp, arrays: Mapping[str, Array], written: Mapping[str, Array], *, sizes: Sizes = NO_SIZES
) -> dict[str, Array]:
    """What the reference leaves in copies of ``written``."""
    results = {name: array.copy() for name, array in written.items()}
    op.compute(Tensors(sizes, {**arrays, **results}))
    return results


def assert_near(got: Mapping[str, Array], expected: Mapping[str, Array], *, floor: float = FLOOR) -> None:
    """Within a step of fp16, for the two may round a number between two others to either of them; NaN where expected.

    Args:
        floor: what numbers may be off besides, relative to the largest.
    """
    for name, truth in expected.items():
        wide = truth.astype(np.float64)
        largest = np.abs(wide[np.isfinite(wide)]).max()
        np.testing.assert_allclose(got[name], wide, rtol=2.0**-10, atol=floor * largest, err_msg=name)


def assert_launches_compute(
    op: AnyOp,
    arrays: Mapping[str, Array],
    shapes: Mapping[str, Shape],
    *,
    kernels: list[str],
    dtype: str = "float16",
    sizes: Sizes = NO_SIZES,
    floor: float = FLOOR,
) -> None:
    """The launches compute what the reference does, by these kernels, and leave alone what it leaves alone.

    Args:
        shapes: of what is written, which is full of NaN before.
        floor: as of :func:`assert_near`.
    """
    before = {name: np.full(shape, np.nan, dtype) for name, shape in shapes.items()}
    got, names = launched(op, arrays, before, sizes=sizes)
    assert names == kernels
    assert_near(got, computed(op, arrays, before, sizes=sizes), floor=floor)

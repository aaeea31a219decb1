import numpy as np
import pytest

from saishiki.runtime.plan.extents import Tensors
from saishiki.runtime.plan.ops import Cost, RegionOrder
from tests.runtime.plan.running import dense, extents

THRESHOLD = 0.5
MASK = np.array([[1.0, 0.5, 0.0, 0.75, np.nan], [0.0, 0.25, 0.5, 1.0, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("at_threshold", "expected"),
    [(False, [[1, 2, 4, 0, 3], [0, 1, 2, 4, 3]]), (True, [[2, 0, 1, 3, 4], [0, 1, 4, 2, 3]])],
    ids=["above", "not_below"],
)
def test_region_order(at_threshold, expected):
    op = RegionOrder(dense("mask", 2, 5), "order", THRESHOLD, at_threshold)
    assert (op.reads(), op.writes()) == (("mask",), ("order",))
    written = np.full((2, 5), -1, np.int32)
    op.compute(Tensors({}, {"mask": MASK, "order": written}))
    assert written.tolist() == expected


def test_cost():
    op = RegionOrder(dense("mask", 2, 5), "order", THRESHOLD, False)
    assert op.cost(extents(mask=((2, 5), "float32"), order=((2, 5), "int32"))) == Cost(0, 80)

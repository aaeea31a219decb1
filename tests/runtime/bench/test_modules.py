import pytest

from saishiki.runtime.bench.modules import module_rows, sizes_of
from saishiki.runtime.signature import Profile, Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "float32", ("batch", "height")),), (), {})


def profile(low, best, high):
    return Profile(*({"batch": batch, "height": 8, "steps": 3} for batch in (low, best, high)))


class OnDevice:
    signature = SIGNATURE

    def __init__(self):
        self.shapes = []

    def __call__(self, **inputs):
        pytest.fail("timed with its copies, though it can tell its own time")

    def device_ms(self, *, x):
        self.shapes.append(x.shape)
        return float(len(x))


class OnHost:
    signature = SIGNATURE

    def __call__(self, *, x):
        return {}


def test_sizes_are_the_distinct_corners():
    profiles = (profile(1, 2, 4), profile(1, 1, 1), profile(4, 4, 4))
    assert [dict(sizes) for sizes in sizes_of(SIGNATURE, profiles)] == [{"batch": b, "height": 8} for b in (1, 2, 4)]


def test_a_module_that_times_itself_is_asked(quick):
    module = OnDevice()
    rows = module_rows({"net": module}, (profile(1, 2, 2),), quick)
    assert [(row.part, row.clock, row.sizes["batch"], row.summary.p50_ms) for row in rows] == [
        ("net", "device", 1, 1.0),
        ("net", "device", 2, 2.0),
    ]
    assert set(module.shapes) == {(1, 8), (2, 8)}


def test_another_is_timed_by_the_host(quick):
    (row,) = module_rows({"net": OnHost()}, (profile(1, 1, 1),), quick)
    assert row.clock == "host"
    assert row.warmup is not None
    assert row.summary.min_ms >= 0

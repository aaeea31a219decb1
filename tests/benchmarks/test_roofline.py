"""The least time of known work."""

import pytest
from roofline import GPUS, Work, roofline, roofline_on


@pytest.mark.parametrize(
    ("work", "us", "bound"),
    [
        (Work(10**12, 0, 0, 1), 10.0, "matrix"),
        (Work(0, 10**12, 0, 1), 100.0, "vector"),
        (Work(0, 0, 10**9, 1), 1000.0, "memory"),
        (Work(10**12, 10**6, 10**6, 1), 10.0, "matrix"),
        (Work(10**12, 10**6, 10**8, 1), 100.0, "memory"),
    ],
)
def test_roofline_is_the_slowest_of_three(work: Work, us: float, bound: str) -> None:
    found = roofline(work, matrix_flops=1e17, vector_flops=1e16, bandwidth=1e12)
    assert (found.us, found.bound) == (pytest.approx(us), bound)


def test_a_roofline_does_not_know_of_launches() -> None:
    assert roofline_on(GPUS[0], Work(1, 1, 1, 1)) == roofline_on(GPUS[0], Work(1, 1, 1, 99))


def test_peaks_are_dense_and_ordered() -> None:
    for gpu in GPUS:
        assert gpu.vector_flops < gpu.matrix_flops
        assert gpu.source
    # 128 multiprocessors of 512 products a clock at 2.52 GHz; 384 bits at 21 Gbit/s.
    assert GPUS[0].matrix_flops == pytest.approx(128 * 512 * 2.52e9, rel=1e-3)
    assert GPUS[0].bandwidth == 384 / 8 * 21e9

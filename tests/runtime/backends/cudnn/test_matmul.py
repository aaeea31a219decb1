"""A linear layer as a convolution, against fp64."""

import numpy as np
import pytest

from saishiki.runtime.backends.cudnn.matmul import Matmul
from tests.runtime.backends.cudnn.host_memory import run
from tests.runtime.backends.cudnn.references import matmul_arrays, matmul_reference


@pytest.mark.parametrize("op", [Matmul(7, 16, 24), Matmul(77, 8, 16, residual=True), Matmul(1, 32, 8)], ids=repr)
def test_matmul_computes_what_it_says(op: Matmul) -> None:
    arrays = matmul_arrays(op)
    y = run(op, arrays, (op.rows, op.filters))
    assert np.abs(y.astype(np.float64) - matmul_reference(arrays)).max() < 0.02


def test_a_dropped_residual_is_seen() -> None:
    arrays = matmul_arrays(Matmul(7, 16, 24, residual=True))
    truth = matmul_reference(arrays)
    del arrays["residual"]
    y = run(Matmul(7, 16, 24), arrays, (7, 24))
    assert np.abs(y.astype(np.float64) - truth).max() > 0.5


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 8, 8), "Matmul: rows is 0"),
        ((4, 12, 8), "channels is 12, expected a multiple of 8"),
        ((4, 8, 6), "filters"),
    ],
)
def test_matmul_of_wrong_sizes(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Matmul(*sizes)

"""Planning in another process: what is said of it, and of a process that dies."""

import os
from typing import Any

import pytest

from saishiki.runtime.backends.cudnn.elsewhere import Planned, plan_elsewhere, summary_of
from saishiki.runtime.backends.cudnn.matmul import Matmul
from saishiki.runtime.errors import BackendError


def test_summary_of_plans() -> None:
    planned = [
        Planned(Matmul(1, 8, 8), "eng41_k2=1", 30, 131),
        Planned(Matmul(2, 8, 8), "eng41_k2=2", 28, 0),
        Planned(Matmul(3, 8, 8), "eng0", 31, 512),
    ]
    assert summary_of(planned, 90) == (
        "3 operations planned for sm_90: eng41 2, eng0 1; 28 candidates at least,"
        " workspace of the first at most 512 bytes"
    )
    assert summary_of([], 80).startswith("0 operations planned for sm_80: none; 0 candidates")


class Fatal:
    """An operation that ends the process that receives it."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_a_process_that_dies() -> None:
    operation: Any = Fatal()
    with pytest.raises(BackendError, match="the process that planned 1 operations for sm_90 died"):
        plan_elsewhere([operation, operation], 90)

"""Kernels run on the GPU where there is one, else under Triton's interpreter, which is chosen before Triton loads."""

import os

import pytest

from saishiki.runtime.backends.cuda import driver_problem

if driver_problem() is not None:
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def needs_gpu() -> None:
    """Skips a test where there is no GPU."""
    if problem := driver_problem():
        pytest.skip(f"needs an NVIDIA GPU of compute capability 8.0 or newer: {problem}")

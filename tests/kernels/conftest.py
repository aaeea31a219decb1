"""What the tests of kernels need: a GPU where they say so, and memory that shows what is never written."""

from typing import Any

import pytest

from saishiki.runtime.backends.cuda import driver_problem


@pytest.fixture
def needs_gpu() -> None:
    """Skips a test where there is no GPU."""
    if problem := driver_problem():
        pytest.skip(f"needs an NVIDIA GPU of compute capability 8.0 or newer: {problem}")


@pytest.fixture
def nan_in_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds NaN, so that a number that is never written shows; outputs and workspaces alike."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
    empty = torch.empty
    with torch.device("cpu"):
        torch.empty(0)  # torch lists its constructors once per process: let it see the real ones

    def filled(*arguments: Any, **options: Any) -> Any:
        out = empty(*arguments, **options)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", filled)
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, float("nan")))

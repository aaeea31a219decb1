"""What the tests of several kernels draw their arguments from, and the budget that they hold results to."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FLOOR = 1e-6
THRESHOLD = 0.05
MASKS = ["empty", "full", "one_token", "thin_lines", "checkerboard", "halves", "per_row", "per_batch"]
MASKS += ["at_threshold", "leaves_0_to_1", "random"]


def draw(*shape: int, seed: int, mean: float = 0.0, dtype: Any = torch.float32) -> Any:
    """Normal numbers about a mean."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) + mean).to(DEVICE, dtype)


def mask_of(kind: str, batch: int, tokens: int) -> Any:
    """(B, T) fp32 of a kind in ``MASKS``; a tile has 64 tokens, 32 in fp32."""
    places = torch.arange(tokens).expand(batch, tokens)
    odd_row = torch.arange(batch)[:, None] % 2 == 1
    values = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(9))
    at = torch.tensor(THRESHOLD)
    near = torch.stack([at, at.nextafter(at + 1), at.nextafter(at - 1)])
    kinds = {
        "empty": torch.zeros(batch, tokens),
        "full": torch.ones(batch, tokens),
        "one_token": (places == tokens // 2).float(),
        "thin_lines": (places % 23 == 7).float(),
        "checkerboard": (places % 2).float(),
        "halves": (places < tokens // 2).float(),
        "per_row": odd_row.expand(batch, tokens).float(),
        "per_batch": (odd_row == (places < tokens // 3)).float(),
        "at_threshold": near[places % 3],
        "leaves_0_to_1": values * 2 - 0.6,
        "random": values * 0.1,
    }
    return kinds[kind].contiguous().to(DEVICE)


def assert_within_budget(out: Any, plain: Any, truth: Any) -> None:
    """The error against fp64 is at most twice that of plain torch at that dtype, plus a floor for numbers near 0."""
    assert out.shape == truth.shape
    assert not out.isnan().any()
    budget = 2 * (plain - truth).abs().max() + FLOOR * truth.abs().max().clamp(min=1.0)
    assert (out - truth).abs().max() <= budget

"""Rounding inside kernels, on the GPU or under Triton's interpreter."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
triton: Any = pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")
import triton.language as tl  # noqa: E402

from saishiki.kernels.checks import INTERPRETED  # noqa: E402
from saishiki.kernels.rounding import rounded  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 1024


@triton.jit
def _round_kernel(x_ptr, out_ptr, SIZE: tl.constexpr, IN_FP32: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    offsets = tl.arange(0, SIZE)
    tl.store(out_ptr + offsets, rounded(tl.load(x_ptr + offsets), out_ptr.dtype.element_ty, IN_FP32))


def numbers() -> Any:
    """Of all magnitudes, halfway cases, and what is no number."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, generator=generator) * 10.0 ** torch.randint(-4, 4, (SIZE,), generator=generator)
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 1 + 2**-11, -1 - 3 * 2**-11])
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0])
    x[: len(halfway)], x[-len(special) :] = halfway, special
    return x.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_rounded_equals_torch(dtype: torch.dtype) -> None:
    x = numbers()
    out = torch.full((SIZE,), -1.0, dtype=dtype, device=DEVICE)
    _round_kernel[(1,)](x, out, SIZE=SIZE, IN_FP32=INTERPRETED and dtype == torch.bfloat16)
    torch.testing.assert_close(out, x.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not INTERPRETED, reason="shows what Triton's interpreter does: needs TRITON_INTERPRET=1")
def test_rounded_is_needed() -> None:
    x = numbers()
    out = torch.full((SIZE,), -1.0, dtype=torch.bfloat16, device=DEVICE)
    _round_kernel[(1,)](x, out, SIZE=SIZE, IN_FP32=False)
    assert (out[:-5] != x.bfloat16()[:-5]).sum() > SIZE / 4

"""The matrix product inside kernels, on the GPU or under Triton's interpreter."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'saishiki[kernels]'")
triton: Any = pytest.importorskip("triton", reason="needs triton: pip install 'saishiki[kernels]'")
import triton.language as tl  # noqa: E402

from saishiki.kernels.checks import INTERPRETED  # noqa: E402
from saishiki.kernels.dot import dot  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 16


@triton.jit
def _product_kernel(a_ptr, b_ptr, c_ptr, SIZE: tl.constexpr, IN_FP32: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    offsets = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]  # [SIZE, SIZE]
    acc = tl.load(c_ptr + offsets)
    tl.store(c_ptr + offsets, dot(tl.load(a_ptr + offsets), tl.load(b_ptr + offsets), acc, IN_FP32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_dot_is_exact_to_the_sum_in_fp32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=generator).to(DEVICE, dtype) for _ in range(2))
    c = torch.randn(SIZE, SIZE, generator=generator).to(DEVICE)
    truth = c.double() + a.double() @ b.double()
    _product_kernel[(1,)](a, b, c, SIZE=SIZE, IN_FP32=INTERPRETED and dtype == torch.bfloat16)
    assert (c - truth).abs().max() < 2e-6 * truth.abs().max()

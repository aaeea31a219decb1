"""fp32 to a smaller type inside a kernel, rounded to nearest even wherever the kernel runs."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def rounded(x, DTYPE: tl.constexpr, IN_FP32: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """x in DTYPE.

    ``IN_FP32`` is for bf16 in Triton's interpreter, as in :mod:`saishiki.kernels.dot`: it cuts the last 16 bits off
    where a GPU rounds, so they are rounded here first.
    """
    if IN_FP32:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
        x = tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)

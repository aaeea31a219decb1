"""``acc + a @ b`` inside a kernel, at each dtype as exact as torch's own."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def dot(a, b, acc, IN_FP32: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """fp32 products in full (no TF32), everything summed in fp32.

    ``IN_FP32`` is for bf16 in Triton's interpreter, which multiplies the raw bits of bf16 operands
    (triton-lang/triton issue 11584); a product of two bf16 numbers is exact in fp32, so the result is a tensor core's.
    """
    if IN_FP32:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")

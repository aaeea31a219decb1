"""One DDIM step on the device, fused into a single pass over x.

``x0 = clip((x - noise_level * eps) / signal_level, -1, 1)``, then
``out = x0_coefficient * x0 + eps_coefficient * eps + sigma * noise``, with row ``k`` of the (S, 5) fp32 coefficient
table of :meth:`saishiki.runtime.schedule.DDIMSchedule.coefficients`. A NaN in x or eps stays a NaN: clipping must not
hide it.

Layout: contiguous, any shape; the kernel sees N numbers. x, noise and out in fp32, eps in fp32, fp16 or bf16;
arithmetic in fp32. Fused are the table look-up, the prediction of x0, the clipping and the noise: memory is read or
written 3 times (4 with noise), in one launch. ``out`` may be x itself.

Source: Song et al., arXiv 2010.02502, eq. 12, as AnimeDiffusion runs it (xq-meng/AnimeDiffusion, commit 1582eb0).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COEFFICIENTS = 5
BLOCK = 1024
EPS_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def ddim_step_reference(x: Tensor, eps: Tensor, coefficients: Tensor, k: int, noise: Tensor | None) -> Tensor:
    """x after step k, in the dtypes given: (B, C, H, W) from x, eps and noise of that shape; coefficients: (S, 5)."""
    signal_level, noise_level, x0_coefficient, eps_coefficient, sigma = coefficients[k]
    x0 = ((x - noise_level * eps) / signal_level).clamp(-1.0, 1.0)
    x = x0_coefficient * x0 + eps_coefficient * eps
    return x if noise is None else x + sigma * noise


# Neither k == 1 nor k % 16 == 0 may make a kernel of its own.
@triton.jit(do_not_specialize=["k"])  # type: ignore[untyped-decorator]
def _ddim_step_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    eps_ptr,
    noise_ptr,
    out_ptr,
    coefficients_ptr,
    k,
    n,
    HAS_NOISE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = coefficients_ptr + k.to(tl.int64) * 5
    signal_level = tl.load(row)
    noise_level = tl.load(row + 1)
    x0_coefficient = tl.load(row + 2)
    eps_coefficient = tl.load(row + 3)

    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = offsets < n
    x = tl.load(x_ptr + offsets, mask=inside)
    eps = tl.load(eps_ptr + offsets, mask=inside).to(tl.float32)
    x0 = tl.div_rn(x - noise_level * eps, signal_level)
    x0 = tl.clamp(x0, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    out = x0_coefficient * x0 + eps_coefficient * eps
    if HAS_NOISE:
        out += tl.load(row + 4) * tl.load(noise_ptr + offsets, mask=inside)
    tl.store(out_ptr + offsets, out, mask=inside)


def ddim_step(x: Tensor, eps: Tensor, coefficients: Tensor, k: int, noise: Tensor | None) -> Tensor:
    """x after step k: (B, C, H, W) fp32, from x, eps and noise of that shape.

    Args:
        coefficients: (S, 5) fp32, on the device of x.
        k: the step, 0 to S - 1.
        noise: fp32, or None where sigma is 0.

    Raises ``TypeError`` for other dtypes, ``ValueError`` for shapes, strides or devices that do not fit.
    """
    _check(x, eps, coefficients, k, noise)
    out = torch.empty_like(x)
    n = x.numel()
    if n:
        grid = (triton.cdiv(n, BLOCK),)
        _ddim_step_kernel[grid](x, eps, noise, out, coefficients, k, n, HAS_NOISE=noise is not None, BLOCK=BLOCK)
    return out


def _check(x: Tensor, eps: Tensor, coefficients: Tensor, k: int, noise: Tensor | None) -> None:
    if coefficients.ndim != 2 or coefficients.shape[1] != COEFFICIENTS:
        raise ValueError(f"expected coefficients (S, {COEFFICIENTS}), got {tuple(coefficients.shape)}")
    if not 0 <= k < len(coefficients):
        raise ValueError(f"expected a step k from 0 to {len(coefficients) - 1}, got {k}")
    _check_tensor("x", x, x, (torch.float32,))
    _check_tensor("eps", eps, x, EPS_DTYPES)
    _check_tensor("coefficients", coefficients, coefficients, (torch.float32,))
    if noise is not None:
        _check_tensor("noise", noise, x, (torch.float32,))
    if coefficients.device != x.device:
        raise ValueError(f"coefficients are on {coefficients.device}, x on {x.device}; move one of them")


def _check_tensor(name: str, tensor: Tensor, like: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        raise TypeError(f"expected {name} in {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tensor.shape != like.shape or tensor.device != like.device:
        expected, found = f"{tuple(like.shape)} on {like.device}", f"{tuple(tensor.shape)} on {tensor.device}"
        raise ValueError(f"expected {name} {expected} as x is, got {found}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous; call .contiguous()")

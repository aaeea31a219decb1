"""``pointwise``: its reference, its checks and its launch."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from saishiki.kernels.checks import check_runs_here
from saishiki.kernels.pointwise.kernel import _pointwise_kernel
from saishiki.kernels.pointwise.variants import BLOCKS
from saishiki.runtime.backends.launches.elementwise import NAMES, Operand, elementwise_launch

DTYPES = {torch.float16: "float16", torch.float32: "float32"}

_REFERENCES: Mapping[str, Callable[..., Tensor]] = {
    "copy": torch.clone,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "sin": torch.sin,
    "cos": torch.cos,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "gated_gelu": lambda a, b: a * F.gelu(b),
    "clip": lambda a, b, c: torch.minimum(torch.maximum(a, b), c),
    "modulate": lambda a, b, c: a * (1 + b) + c,
    "select_above": lambda a, b, c, d: torch.where(a > b, c, d),
}


def pointwise_reference(function: str, *operands: Tensor) -> Tensor:
    """What :func:`pointwise` writes, in the dtype of the operands."""
    return _REFERENCES[function](*operands)


def pointwise(function: str, *operands: Tensor, out: Tensor) -> Tensor:
    """Writes ``function(*operands)`` to out, and returns it; a copy of no operand writes zeros.

    Args:
        function: one of those at the top of this page.
        operands: fp16 or fp32, of any strides; broadcast to out.
        out: as they; no two of its numbers in one place.

    Raises ``TypeError`` for other dtypes, ``ValueError`` for shapes and devices that do not fit, and ``BackendError``
    for a function that there is not, or of another number of operands.
    """
    for tensor in (out, *operands):
        if tensor.dtype not in DTYPES:
            raise TypeError(f"expected {' or '.join(map(str, DTYPES))}, got {tensor.dtype}")
        if tensor.device != out.device:
            raise ValueError(f"expected operands on {out.device}, got one on {tensor.device}; move it")
    try:
        expanded = [operand.expand(out.shape) for operand in operands]
    except RuntimeError as error:
        raise ValueError(f"expected operands that broadcast to {tuple(out.shape)}: {error}") from error
    check_runs_here("pointwise", out)
    launch = elementwise_launch(function, out.shape, _operand(out), [_operand(operand) for operand in expanded])
    tensors = dict(zip(NAMES, (out, *expanded), strict=False))
    # A tensor for each address, whatever its dtype: the kernel casts pointers. What is absent is not read.
    pointers = {f"{name}_ptr": tensors.get(name, out) for name in NAMES}
    count, unit = (int(part.removeprefix("by")) for part in launch.kernel.split("_")[1:])
    if out.numel():
        units = int(launch.arguments["units"])
        _pointwise_kernel[(triton.cdiv(units, BLOCKS[unit]),)](
            **{**launch.arguments, **pointers}, OPERANDS=count, UNIT=unit, BLOCK=BLOCKS[unit]
        )
    return out


def _operand(tensor: Tensor) -> Operand:
    return Operand(tensor.data_ptr(), DTYPES[tensor.dtype], tensor.stride())

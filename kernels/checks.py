"""What every op asks of its arguments, and the errors it raises: what was given, what was expected, what to do."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` when triton was imported)."""


def check_runs_here(op: str, tensor: Tensor) -> None:
    """Raises ``ValueError`` for a tensor that no Triton kernel can read in this process."""
    if not tensor.is_cuda and not INTERPRETED:
        raise ValueError(
            f"{op}: expected tensors on a CUDA device, got one on {tensor.device}; move them, call {op}_reference, or "
            "set TRITON_INTERPRET=1 before triton is imported"
        )


def check_tensor(
    name: str, tensor: Tensor, shape: Sequence[int], dtypes: Sequence[torch.dtype], device: torch.device
) -> None:
    """Raises ``TypeError`` for another dtype, ``ValueError`` for another shape or device or for gaps in memory."""
    if tensor.dtype not in dtypes:
        raise TypeError(f"expected {name} in {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"expected {name} of shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"expected {name} on {device}, got {tensor.device}; move it")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous; call .contiguous()")

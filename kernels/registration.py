"""Ops in ``torch.ops.saishiki``, so that ``torch.compile`` and ``torch.export`` take them as one node."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from saishiki.kernels.checks import check_runs_here

NAMESPACE = "saishiki"


def register_op(name: str, run: Callable[..., Any], fake: Callable[..., Any], *, mutates: Sequence[str] = ()) -> Any:
    """``torch.ops.saishiki.<name>``, from a function with annotated arguments; calling it runs ``run``.

    Args:
        run: its first argument is a tensor, whose GPU is the current one meanwhile. Where no kernel can read it, a call
            raises ``ValueError``; tracing does not, and needs no GPU.
        fake: the same arguments to empty tensors of the result's shape and dtype; how graphs are traced.
        mutates: arguments that are written to.

    A backward pass through the op raises ``NotImplementedError``.
    """

    @functools.wraps(run)
    def run_where_kernels_do(first: Tensor, *arguments: Any, **options: Any) -> Any:
        check_runs_here(name, first)
        with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
            return run(first, *arguments, **options)

    op = torch.library.custom_op(f"{NAMESPACE}::{name}", run_where_kernels_do, mutates_args=tuple(mutates))
    op.register_fake(fake)
    if not mutates:
        op.register_autograd(_refuse_gradient(name))
    return op


def _refuse_gradient(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(
            f"saishiki::{name} has no gradient: it is made for inference; train with {name}_reference, "
            "or call it under torch.inference_mode()"
        )

    return backward

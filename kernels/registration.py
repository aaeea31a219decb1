"""Ops in ``torch.ops.saishiki``, so that ``torch.compile`` and ``torch.export`` take them as one node."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

NAMESPACE = "saishiki"


def register_op(name: str, run: Callable[..., Any], fake: Callable[..., Any], *, mutates: Sequence[str] = ()) -> Any:
    """``torch.ops.saishiki.<name>``, from a function with annotated arguments; calling it runs ``run``.

    Args:
        fake: the same arguments to empty tensors of the result's shape and dtype; how graphs are traced.
        mutates: arguments that are written to.

    A backward pass through the op raises ``NotImplementedError``.
    """
    op = torch.library.custom_op(f"{NAMESPACE}::{name}", run, mutates_args=tuple(mutates))
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

"""cuDNN's part of a plan: the operations that it computes, each by the engine that was chosen for its sizes."""

from collections.abc import Callable, Set
from dataclasses import dataclass

from saishiki.runtime.backends.cudnn.execution_plan import ExecutionPlan
from saishiki.runtime.backends.cudnn.from_plan import addresses_from_op, operation_from_op
from saishiki.runtime.backends.cudnn.operation import Operation
from saishiki.runtime.plan.extents import Extents
from saishiki.runtime.plan.ops import AnyOp

ZEROS, WORKSPACE = "zeros", "cudnn workspace"
"""Workspaces: the bias of a layer that has none, which must hold zeros, and cuDNN's own scratch memory."""


@dataclass(frozen=True)
class ChosenPlan:
    """An operation of a plan, ready to be enqueued by cuDNN."""

    op: AnyOp
    plan: ExecutionPlan
    handle: int

    @property
    def workspace_bytes(self) -> int:
        """The scratch memory that it needs while it runs."""
        return self.plan.workspace_bytes

    def enqueue(self, extents: Extents, address: Callable[[str], int]) -> None:
        """Enqueues it on the handle's stream."""
        addresses = addresses_from_op(self.op, extents, address, zeros=ZEROS)
        self.plan.execute(self.handle, addresses, address(WORKSPACE) if self.workspace_bytes else 0)


@dataclass(frozen=True)
class CudnnPart:
    """What chooses engines on one GPU.

    Args:
        handle: cuDNN's, on the device's stream.
        choose: the plan of an operation, timed or remembered.
    """

    handle: int
    choose: Callable[[Operation], ExecutionPlan]

    def chosen(self, op: AnyOp, extents: Extents, *, equal_vectors: Set[str] = frozenset()) -> ChosenPlan | None:
        """The operation as cuDNN runs it; None where it has nothing for it, and a kernel of ours does it.

        Args:
            equal_vectors: hoisted vectors whose rows are all the same.

        Raises ``BackendError`` where cuDNN should have an engine and none works.
        """
        operation = operation_from_op(op, extents, equal_vectors=equal_vectors)
        return None if operation is None else ChosenPlan(op, self.choose(operation), self.handle)

"""What one candidate of cuDNN becomes: a plan of one operation, one GPU and one version of cuDNN, to be enqueued."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saishiki.runtime.backends.cudnn.libraries import Cudnn
from saishiki.runtime.backends.cudnn.operation import Operation
from saishiki.runtime.errors import BackendError

ALIGNMENT_BYTES = 16
"""What cuDNN expects of every address."""


@dataclass(frozen=True)
class ExecutionPlan:
    """An operation ready to be enqueued, by one thread at a time.

    Args:
        engine: cuDNN's name of the engine and its settings, such as ``eng10_k2=5_k13=1``.
        workspace_bytes: the scratch memory it needs while it runs.
        uids: cuDNN's number of each tensor.
    """

    operation: Operation
    engine: str
    workspace_bytes: int
    uids: Mapping[str, int] = field(repr=False)
    graph: Any = field(repr=False, compare=False)
    index: int = field(repr=False)
    cudnn: Cudnn = field(repr=False)

    def execute(self, handle: int, addresses: Mapping[str, int], workspace: int = 0) -> None:
        """Enqueues it on the handle's stream; what it reads and writes must stay where it is until it is done.

        A stream that is being captured records it. Run every plan once before a capture: CUDA loads kernels when they
        are first used, which not every capture allows.

        Args:
            addresses: of the device memory of each tensor in the operation's ``layouts()``.
            workspace: the address of ``workspace_bytes`` of scratch memory.

        Raises ``TypeError`` where a tensor is missing or unknown, ``ValueError`` for an address that is no multiple of
        16, ``BackendError`` where cuDNN refuses.
        """
        if addresses.keys() != self.uids.keys():
            raise TypeError(f"{self.operation} takes {list(self.uids)}, got {sorted(addresses)}")
        for name, address in (*addresses.items(), ("workspace", workspace)):
            if address % ALIGNMENT_BYTES:
                expected = f"a multiple of {ALIGNMENT_BYTES}"
                raise ValueError(f"{self.operation}: {name} lies at {address}, expected {expected}")
        if self.workspace_bytes and not workspace:
            needed = f"a workspace of {self.workspace_bytes} bytes"
            raise ValueError(f"{self.operation}: {self.engine} needs {needed}, got none")
        pointers = {uid: addresses[name] for name, uid in self.uids.items()}
        try:
            self.graph.execute_plan_at_index(pointers, workspace, self.index, handle)
        except self.cudnn.errors as error:
            raise BackendError(f"cuDNN does not run {self.operation} by {self.engine}: {error}") from error


def uids_of(operation: Operation) -> dict[str, int]:
    """The number by which cuDNN knows each tensor of an operation, from 1."""
    return {name: uid for uid, name in enumerate(operation.layouts(), start=1)}

"""A plan ready to run at fixed sizes: its memory, and its launches in order."""

from collections.abc import Mapping, Set

import numpy as np

from saishiki.runtime.backends.cudnn.plan_part import WORKSPACE, ZEROS, ChosenPlan, CudnnPart
from saishiki.runtime.backends.device import Device, InputUse, Memory, padded_bytes
from saishiki.runtime.backends.launches import Address, launches_of, workspaces_of
from saishiki.runtime.backends.launches.group_norm import TICKETS
from saishiki.runtime.backends.plans import LoadedPlan
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan import lay_out
from saishiki.runtime.plan.extents import Extent
from saishiki.runtime.plan.ops import AnyOp, Matmul
from saishiki.runtime.plan.phases import split_phases
from saishiki.runtime.signature import Array, Sizes


def upload_weights(device: Device, loaded: LoadedPlan) -> dict[str, Memory]:
    """A plan's weights on the device, by name; all executions of a module share them.

    Raises ``BackendError`` where the GPU has too little memory for them, before it takes any.
    """
    needed = sum(Extent(spec.shape, spec.dtype).nbytes for spec in loaded.plan.weights.values())
    if needed > (free := device.free_bytes()):
        raise BackendError(
            f"the plan's weights need {needed / 1e6:.1f} MB, and the GPU has {free / 1e6:.1f} MB left; free some of it"
        )
    weights = {}
    for name in loaded.plan.weights:
        array = loaded.weights[name]
        weights[name] = device.allocate(padded_bytes(array.nbytes))
        device.upload(weights[name], array)
    device.synchronize()
    return weights


class PlanExecution:
    """A plan at fixed sizes, an :class:`~saishiki.runtime.backends.device.Engine`.

    ``extents`` are the sizes of its tensors, ``offsets`` where its buffers lie in the arena, and ``hoisted`` the inputs
    whose memory holds hoisted vectors, with the names of these.

    Args:
        weights: as :func:`upload_weights` gives them.
        use: what depends on inputs that stay is computed by :meth:`prepare`; a hoisted vector that is alike for all
            pictures stands for all in cuDNN.
        sms: multiprocessors of the GPU.
        cudnn: runs the operations that it has something for; None leaves all to our kernels.

    Raises ``BackendError`` where no kernel runs one of the plan's operations, or the GPU has too little memory.
    """

    def __init__(
        self,
        device: Device,
        loaded: LoadedPlan,
        weights: Mapping[str, Memory],
        sizes: Sizes,
        *,
        use: InputUse,
        sms: int,
        cudnn: CudnnPart | None = None,
    ) -> None:
        self._device, self._loaded, self._weights, self._sms = device, loaded, weights, sms
        phases = split_phases(loaded.plan, use.changing)
        self._constant, self._changed = phases.plan.ops[: phases.constant], phases.plan.ops[phases.constant :]
        self.extents = phases.plan.extents(loaded.signature, sizes)
        arena = lay_out(phases.plan, self.extents, phases.kept)
        self._by_cudnn = self._chosen(cudnn, use.alike) if cudnn else {}
        self.hoisted = {vector.input: name for name, vector in loaded.plan.hoisted.items()}
        self._check_inputs()
        interface = {
            spec.name: padded_bytes(self._nbytes(spec.name))
            for spec in (*loaded.signature.inputs, *loaded.signature.outputs)
        }
        workspaces = self._workspace_bytes()
        self._check_memory(arena.nbytes, sum(interface.values()), sum(workspaces.values()))
        self.memory: Mapping[str, Memory] = {name: device.allocate(nbytes) for name, nbytes in interface.items()}
        self._arena, self.offsets = device.allocate(arena.nbytes), arena.offsets
        self._workspaces = {name: device.allocate(nbytes) for name, nbytes in workspaces.items()}
        for name in {TICKETS, ZEROS} & workspaces.keys():
            device.upload(self._workspaces[name], np.zeros(workspaces[name], np.uint8))
        # Every launch is made once without being enqueued, so that whatever is missing is told now.
        for op in self.ops:
            if op not in self._by_cudnn:
                launches_of(op, self.extents, self.address({}), sms=sms)

    def _chosen(self, cudnn: CudnnPart, alike: Set[str]) -> dict[AnyOp, ChosenPlan]:
        vectors = {name for name, vector in self._loaded.plan.hoisted.items() if vector.input in alike}
        chosen = {op: cudnn.chosen(op, self.extents, equal_vectors=vectors) for op in self.ops}
        return {op: plan for op, plan in chosen.items() if plan is not None}

    def _check_inputs(self) -> None:
        """A hoisted input is in memory with biases added, so nothing may want it without them."""
        both = [name for op in self.ops for name in op.reads() if name in self.hoisted]
        if both:
            raise BackendError(f"the plan reads {both[0]} both with biases and without; use the backend cuda-reference")

    def _nbytes(self, name: str) -> int:
        return self.extents.nbytes(self.hoisted.get(name, name))

    def _check_memory(self, arena: int, interface: int, workspaces: int) -> None:
        needed, free = arena + interface + workspaces, self._device.free_bytes()
        if needed > free:
            raise BackendError(
                f"the plan needs {needed / 1e6:.1f} MB at {dict(self.extents.sizes)} (buffers {arena / 1e6:.1f}, "
                f"inputs and outputs {interface / 1e6:.1f}, workspaces {workspaces / 1e6:.1f}), and the GPU has "
                f"{free / 1e6:.1f} MB left; use a smaller batch or size, or free some of it"
            )

    def _longest_bias(self) -> int:
        filters = (self.extents.shape(op.weight)[0] for op in self.ops if isinstance(op, Matmul))
        return padded_bytes(max(filters, default=0) * np.dtype(np.float16).itemsize)

    def _workspace_bytes(self) -> dict[str, int]:
        scratch = max((plan.workspace_bytes for plan in self._by_cudnn.values()), default=0)
        sizes = {ZEROS: self._longest_bias(), WORKSPACE: padded_bytes(scratch)} if self._by_cudnn else {}
        for op in self.ops:
            for name, nbytes in workspaces_of(op, self.extents, sms=self._sms).items():
                sizes[name] = max(sizes.get(name, 0), padded_bytes(nbytes))
        return sizes

    def rows(self, name: str, rows: Array) -> Array:
        """What is uploaded for an input: with the biases added where the plan wants them so."""
        if name not in self.hoisted:
            return rows
        return self._loaded.plan.hoist(self.hoisted[name], rows, self._loaded.weights)

    def prepare(self) -> None:
        """Enqueues what depends on the inputs that stay the same."""
        self._enqueue(self._constant, {})

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        """Enqueues the rest, with some inputs elsewhere than in :attr:`memory`."""
        self._enqueue(self._changed, addresses)

    @property
    def ops(self) -> tuple[AnyOp, ...]:
        """Its operations in the order of a first run."""
        return (*self._constant, *self._changed)

    def enqueue_op(self, op: AnyOp) -> None:
        """Enqueues one of :attr:`ops` alone, with all tensors in :attr:`memory`."""
        self._enqueue((op,), {})

    def _enqueue(self, ops: tuple[AnyOp, ...], addresses: Mapping[str, int]) -> None:
        address = self.address(addresses)
        for op in ops:
            if op in self._by_cudnn:
                self._by_cudnn[op].enqueue(self.extents, address)
                continue
            for launch in launches_of(op, self.extents, address, sms=self._sms):
                self._device.launch(launch.kernel, **launch.arguments)

    def address(self, elsewhere: Mapping[str, int]) -> Address:
        """Where each tensor of the plan lies, some inputs elsewhere than in :attr:`memory`."""
        inputs = {hoisted: name for name, hoisted in self.hoisted.items()}

        def address(name: str) -> int:
            name = inputs.get(name, name)
            if name in elsewhere:
                return elsewhere[name]
            if name in self.offsets:
                return self._arena.address + self.offsets[name]
            memory = self.memory.get(name) or self._weights.get(name) or self._workspaces[name]
            return memory.address

        return address

    def is_capturable(self) -> bool:
        """All of it is launches on one stream."""
        return True

"""A plan ready to run at fixed sizes: its memory, and its launches in order."""

from collections.abc import Mapping, Set

import numpy as np

from saishiki.runtime.backends.device import Device, Memory, padded_bytes
from saishiki.runtime.backends.launches import Address, launches_of, workspaces_of
from saishiki.runtime.backends.launches.group_norm import TICKETS
from saishiki.runtime.backends.plans import LoadedPlan
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan import lay_out
from saishiki.runtime.plan.ops import AnyOp
from saishiki.runtime.plan.phases import split_phases
from saishiki.runtime.signature import Array, Sizes


def upload_weights(device: Device, loaded: LoadedPlan) -> dict[str, Memory]:
    """A plan's weights on the device, by name; all executions of a module share them."""
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
        changing: inputs that are new in every run; what depends on the others alone is computed by :meth:`prepare`.
        sms: multiprocessors of the GPU.

    Raises ``BackendError`` where no kernel runs one of the plan's operations, or the GPU has too little memory.
    """

    def __init__(
        self,
        device: Device,
        loaded: LoadedPlan,
        weights: Mapping[str, Memory],
        sizes: Sizes,
        *,
        changing: Set[str],
        sms: int,
    ) -> None:
        self._device, self._loaded, self._weights, self._sms = device, loaded, weights, sms
        phases = split_phases(loaded.plan, changing)
        self._constant, self._changed = phases.plan.ops[: phases.constant], phases.plan.ops[phases.constant :]
        self.extents = phases.plan.extents(loaded.signature, sizes)
        arena = lay_out(phases.plan, self.extents, phases.kept)
        self.hoisted = {vector.input: name for name, vector in loaded.plan.hoisted.items()}
        self._check_inputs()
        self.memory: Mapping[str, Memory] = {
            spec.name: device.allocate(padded_bytes(self._nbytes(spec.name)))
            for spec in (*loaded.signature.inputs, *loaded.signature.outputs)
        }
        self._arena, self.offsets = device.allocate(arena.nbytes), arena.offsets
        self._workspaces = self._new_workspaces()
        # Every launch is made once without being enqueued, so that whatever is missing is told now.
        for op in self.ops:
            launches_of(op, self.extents, self.address({}), sms=sms)

    def _check_inputs(self) -> None:
        """A hoisted input is in memory with biases added, so nothing may want it without them."""
        both = [name for op in self.ops for name in op.reads() if name in self.hoisted]
        if both:
            raise BackendError(f"the plan reads {both[0]} both with biases and without; use the backend cuda-reference")

    def _nbytes(self, name: str) -> int:
        return self.extents.nbytes(self.hoisted.get(name, name))

    def _new_workspaces(self) -> dict[str, Memory]:
        sizes: dict[str, int] = {}
        for op in self.ops:
            for name, nbytes in workspaces_of(op, self.extents, sms=self._sms).items():
                sizes[name] = max(sizes.get(name, 0), nbytes)
        workspaces = {name: self._device.allocate(padded_bytes(nbytes)) for name, nbytes in sizes.items()}
        if TICKETS in workspaces:
            self._device.upload(workspaces[TICKETS], np.zeros(workspaces[TICKETS].nbytes, np.uint8))
        return workspaces

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

    def _enqueue(self, ops: tuple[AnyOp, ...], addresses: Mapping[str, int]) -> None:
        address = self.address(addresses)
        for op in ops:
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

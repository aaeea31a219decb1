"""The denoising loop with its state on the device: one upload, S steps without the host, one download.

The steps are those of :mod:`.loop_plan`, recorded into CUDA graphs once per combination of sizes and number of steps,
and replayed afterwards with new contents in the same memory.

Nothing here knows CUDA or TensorRT: a device and an engine are protocols, and with ones that compute in numpy the loop
gives the numbers of the solver's own ``sample``, but for the rounding of the table's fp32.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from saishiki.runtime.backends.device import Device, Engine, InputUse, Memory
from saishiki.runtime.backends.loop_plan import LoopPlan, PlanKey, plan_key, table_of
from saishiki.runtime.backends.protocol import DenoisingLoop, OnStep, no_progress
from saishiki.runtime.backends.sampler_kernel import ALIGNED_NUMBERS, StepMemory, launch_step
from saishiki.runtime.signature import Array, Signature, Sizes, TensorSpec

_LOG = logging.getLogger(__name__)

MAX_PLANS = 8
PROGRESS_CHUNK = 1


EngineAt = Callable[[Sizes, InputUse], Engine]


def runs_on_device(loop: DenoisingLoop) -> bool:
    """Whether the device can run it alone: the solver is a table."""
    return loop.solver.table is not None


def use_of(loop: DenoisingLoop) -> InputUse:
    """What a loop promises: x and the rows of a step are new in each, and one row for all pictures is alike for all."""
    alike = frozenset(name for name, rows in loop.per_step.items() if rows.shape[1] == 1)
    return InputUse(frozenset((loop.state, *loop.per_step)), alike)


class DeviceLoop:
    """The loop of one denoiser on one device. Not thread-safe.

    Args:
        engine_at: the denoiser's engine at given sizes, for runs that use its inputs so; it has run there at least
            once.
    """

    def __init__(self, device: Device, signature: Signature, engine_at: EngineAt) -> None:
        self._device, self._signature, self._engine_at = device, signature, engine_at
        self._plans: OrderedDict[PlanKey, LoopPlan] = OrderedDict()
        self.captured: bool | None = None
        """Whether the last run replayed CUDA graphs; None before the first run."""

    def run(self, loop: DenoisingLoop, on_step: OnStep, *, chunk: int | None = None) -> Array:
        """x after the last step: (B, C, H, W) fp32.

        Args:
            chunk: steps per graph, and between two reports; None takes all of them where ``on_step`` is
                :func:`saishiki.runtime.backends.protocol.no_progress`, else one.

        Raises ``ValueError`` for a loop that does not fit the denoiser's signature, or that
        :func:`runs_on_device` refuses.
        """
        plan = self._plan_for(loop, chunk or (loop.solver.steps if on_step is no_progress else PROGRESS_CHUNK))
        try:
            plan.upload(loop)
            plan.run(loop, on_step)
            return plan.download(loop.x)
        finally:
            self._device.synchronize()

    def run_timed(self, loop: DenoisingLoop) -> tuple[Array, float]:
        """x after the last step, run without reports, and the device time of all steps in milliseconds."""
        plan = self._plan_for(loop, loop.solver.steps)
        try:
            plan.upload(loop)
            begin = self._device.mark()
            plan.run(loop, no_progress)
            end = self._device.mark()
            return plan.download(loop.x), end.ms_since(begin)
        finally:
            self._device.synchronize()

    def _plan_for(self, loop: DenoisingLoop, chunk: int) -> LoopPlan:
        sizes = self._checked_sizes(loop)
        plan = self._plan(plan_key(loop, sizes, chunk), sizes, loop)
        self.captured = plan.captured
        return plan

    def _plan(self, key: PlanKey, sizes: Sizes, loop: DenoisingLoop) -> LoopPlan:
        engine = self._engine_at(sizes, use_of(loop))
        if key not in self._plans or self._plans[key].engine is not engine:
            self._plans[key] = self._new_plan(key, engine, loop)
        self._plans.move_to_end(key)
        while len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return self._plans[key]

    def _new_plan(self, key: PlanKey, engine: Engine, loop: DenoisingLoop) -> LoopPlan:
        (prediction,) = self._signature.outputs
        self._load_kernel(table_of(loop.solver), loop.solver.slots)
        plan = LoopPlan(self._device, engine, loop, prediction.name, key)
        if not plan.captured:
            _LOG.warning("this engine cannot be recorded into a CUDA graph; its steps are launched one by one")
        return plan

    def _load_kernel(self, solver: Array, slots: int) -> None:
        """Launches the kernel over nothing: the driver loads it then, which must not fall into a recording."""
        none, table = Memory(0, 0, None), self._device.allocate(solver.nbytes)
        self._device.upload(table, solver)
        launch_step(self._device, StepMemory(none, none, table, 0, slots), 0)
        self._device.synchronize()

    def _checked_sizes(self, loop: DenoisingLoop) -> Sizes:
        """The sizes of a run; raises ``ValueError`` where its arrays do not fit the signature or one another."""
        prediction = _prediction_of(self._signature, loop.state)
        if loop.noise is not None and loop.noise.dtype != np.float32:
            raise ValueError(f"expected noise in float32, got {loop.noise.dtype}")
        begins = [loop.phases.index(phase) for phase in dict.fromkeys(loop.phases)] or [0]
        first, *others = ({loop.state: loop.x, **loop.inputs(e)} for e in begins)
        sizes = self._signature.sizes_from_arrays(first)
        for inputs in others:
            if self._signature.sizes_from_arrays(inputs) != sizes:
                raise ValueError(f"expected constants of the sizes {sizes} in every phase")
        _check_slots(loop, prediction, sizes)
        return sizes

    def close(self) -> None:
        """Frees the memory and the graphs."""
        self._plans.clear()


def _check_slots(loop: DenoisingLoop, prediction: TensorSpec, sizes: Sizes) -> None:
    """Raises ``ValueError`` where the denoiser gives another number of slots, or where they do not lie as needed."""
    slots, (batch, *picture) = loop.solver.slots, loop.x.shape
    expected = (slots * batch, *picture)
    if prediction.shape(sizes) != expected:
        raise ValueError(f"expected a prediction {expected} for {slots} guidance slots, got {prediction} at {sizes}")
    if slots > 1 and loop.x.size % ALIGNED_NUMBERS:
        raise ValueError(f"expected x of a multiple of {ALIGNED_NUMBERS} numbers with guidance, got {loop.x.shape}")


def _prediction_of(signature: Signature, state: str) -> TensorSpec:
    """The prediction; raises ``ValueError`` where the kernel cannot read it, or cannot write the state."""
    tensors = [*(spec for spec in signature.inputs if spec.name == state), *signature.outputs]
    if len(tensors) != 2 or tensors[0].dims[1:] != tensors[1].dims[1:]:
        raise ValueError(
            f"expected one output, of the dims of the input {state} but for the batch; "
            f"got {', '.join(map(str, tensors))}"
        )
    if any(spec.dtype != "float32" for spec in tensors):
        raise ValueError(f"expected state and prediction in float32; got {', '.join(map(str, tensors))}")
    return tensors[1]

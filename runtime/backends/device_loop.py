"""The denoising loop with its state on the device: one upload, S steps without the host, one download.

A step is the denoiser's engine, whose per-step inputs point at this step's row of a table, and one launch of the
sampler kernel, which updates x in place by this step's row of :func:`saishiki.runtime.samplers.ddim_table`. The steps
are recorded into CUDA graphs once per combination of sizes, number of steps and presence of noise, and replayed
afterwards with new contents in the same memory.

Nothing here knows CUDA or TensorRT: a device and an engine are protocols, and with ones that compute in numpy the loop
gives the numbers of :func:`saishiki.runtime.samplers.sample_ddim`, but for the rounding of the table's fp32.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from saishiki.runtime.backends.device import Completion, Device, Engine, Memory, Table, padded_bytes, table_rows
from saishiki.runtime.backends.protocol import DenoisingLoop, OnStep, no_progress
from saishiki.runtime.samplers import ddim_table
from saishiki.runtime.signature import Array, Signature, Sizes, TensorSpec

_LOG = logging.getLogger(__name__)

KERNEL = "fused_sampler_step_g1_fp32"
MAX_PLANS = 8
PROGRESS_CHUNK = 1


@dataclass(frozen=True)
class Denoise:
    """Run the engine with the per-step inputs of step k: eps from x."""

    k: int


@dataclass(frozen=True)
class UpdateState:
    """Launch the sampler kernel of step k: x from x and eps."""

    k: int


Operation = Denoise | UpdateState


def loop_program(steps: range) -> tuple[Operation, ...]:
    """What a run enqueues for some of its steps, in order."""
    return tuple(operation for k in steps for operation in (Denoise(k), UpdateState(k)))


def chunks_of(steps: int, chunk: int) -> tuple[range, ...]:
    """The steps in groups of ``chunk``, the last one shorter: ``chunks_of(5, 2) == (0..1, 2..3, 4..4)``."""
    return tuple(range(start, min(start + chunk, steps)) for start in range(0, steps, chunk))


def launch_step(
    device: Device, *, x_ptr: int, prediction_ptr: int, table_ptr: int, noise_ptr: int, k: int, n: int
) -> None:
    """Launches the sampler kernel without guidance or history; x is the next model input itself, so none is written.

    Args:
        noise_ptr: 0 for none.
        n: numbers in x, a multiple of 16.
    """
    device.launch(
        KERNEL,
        x_ptr=x_ptr,
        prediction_ptr=prediction_ptr,
        table_ptr=table_ptr,
        noise_ptr=noise_ptr,
        history_ptr=0,
        model_input_ptr=0,
        k=k,
        n=n,
        noises=int(noise_ptr != 0),
        history_slots=0,
        input_slots=0,
    )


@dataclass(frozen=True)
class PlanKey:
    """What the recorded graphs depend on."""

    sizes: tuple[tuple[str, int], ...]
    steps: int
    noisy: bool
    chunk: int


class LoopPlan:
    """The memory of one kind of run, and its steps, recorded where the engine allows it."""

    def __init__(self, device: Device, engine: Engine, loop: DenoisingLoop, prediction: str, key: PlanKey) -> None:
        self.device, self.engine, self.key = device, engine, key
        self._state, self._prediction = engine.memory[loop.state], engine.memory[prediction]
        # All rows are padded, so the kernel may run over the padding too: whole vectors, no remainder.
        self._elements = self._state.nbytes // np.dtype(np.float32).itemsize
        self._solver = device.allocate(ddim_table(loop.schedule).nbytes)
        self._per_step = {name: self._table(_over_batch(rows, loop)) for name, rows in loop.per_step.items()}
        self._noise = None if loop.noise is None else self._table(loop.noise)
        self._uploaded: dict[int, Array] = {}
        self.captured = engine.is_capturable()
        self.chunks = tuple((steps, self._ready(loop_program(steps))) for steps in chunks_of(key.steps, key.chunk))

    def _table(self, array: Array) -> Table:
        row_bytes = padded_bytes(array[0].nbytes)
        return Table(self.device.allocate(len(array) * row_bytes), row_bytes)

    def _ready(self, program: tuple[Operation, ...]) -> Callable[[], None]:
        def work() -> None:
            for operation in program:
                self._enqueue(operation)

        return self.device.capture(work) if self.captured else work

    def _enqueue(self, operation: Operation) -> None:
        match operation:
            case Denoise(k):
                self.engine.enqueue({name: table.address(k) for name, table in self._per_step.items()})
            case UpdateState(k):
                self._update_state(k)

    def _update_state(self, k: int) -> None:
        launch_step(
            self.device,
            x_ptr=self._state.address,
            prediction_ptr=self._prediction.address,
            table_ptr=self._solver.address,
            noise_ptr=0 if self._noise is None else self._noise.address(k),
            k=k,
            n=self._elements,
        )

    def upload(self, loop: DenoisingLoop) -> None:
        """Puts the contents of a run into the memory; what depends on the schedule alone, only where it changed."""
        self.device.upload(self._state, loop.x)
        for name, array in loop.constants.items():
            self.device.upload(self.engine.memory[name], array)
        if self._noise is not None and loop.noise is not None:
            self.device.upload(self._noise.memory, table_rows(loop.noise))
        solver = ddim_table(loop.schedule)
        if self._is_new(self._solver, solver):
            self.device.upload(self._solver, solver)
        for name, rows in loop.per_step.items():
            if self._is_new(self._per_step[name].memory, rows):
                self.device.upload(self._per_step[name].memory, table_rows(_over_batch(rows, loop)))

    def _is_new(self, memory: Memory, content: Array) -> bool:
        """Whether the memory was last asked about for another content."""
        last = self._uploaded.get(memory.address)
        self._uploaded[memory.address] = content.copy()
        return last is None or not np.array_equal(last, content)

    def run(self, on_step: OnStep) -> None:
        """Runs all steps. Reports a chunk while the next one is already running, so that the device never waits."""
        under_way: tuple[range, Completion] | None = None
        for steps, enqueue in self.chunks:
            enqueue()
            following = (steps, self.device.mark())
            if under_way is not None:
                _report(under_way, on_step)
            under_way = following
        if under_way is not None:
            _report(under_way, on_step)

    def download(self, like: Array) -> Array:
        """x, once all steps are done."""
        x: Array = np.empty_like(like, order="C")
        self.device.download(self._state, x)
        return x


def _over_batch(rows: Array, loop: DenoisingLoop) -> Array:
    """(S, B, ...) from (S, ...)."""
    return np.repeat(rows[:, None], len(loop.x), axis=1)


def _report(under_way: tuple[range, Completion], on_step: OnStep) -> None:
    steps, completion = under_way
    completion.wait()
    for k in steps:
        on_step(k, None)


class DeviceLoop:
    """The loop of one denoiser on one device. Not thread-safe.

    Args:
        engine_at: the denoiser's engine at given sizes, which has run there at least once.
    """

    def __init__(self, device: Device, signature: Signature, engine_at: Callable[[Sizes], Engine]) -> None:
        self._device, self._signature, self._engine_at = device, signature, engine_at
        self._plans: OrderedDict[PlanKey, LoopPlan] = OrderedDict()
        self.captured: bool | None = None
        """Whether the last run replayed CUDA graphs; None before the first run."""

    def run(self, loop: DenoisingLoop, on_step: OnStep, *, chunk: int | None = None) -> Array:
        """x after the last step: (B, C, H, W) fp32.

        Args:
            chunk: steps per graph, and between two reports; None takes all of them where ``on_step`` is
                :func:`saishiki.runtime.backends.protocol.no_progress`, else one.

        Raises ``ValueError`` for a loop that does not fit the denoiser's signature.
        """
        plan = self._plan_for(loop, chunk or (len(loop.schedule) if on_step is no_progress else PROGRESS_CHUNK))
        try:
            plan.upload(loop)
            plan.run(on_step)
            return plan.download(loop.x)
        finally:
            self._device.synchronize()

    def run_timed(self, loop: DenoisingLoop) -> tuple[Array, float]:
        """x after the last step, run without reports, and the device time of all steps in milliseconds."""
        plan = self._plan_for(loop, len(loop.schedule))
        try:
            plan.upload(loop)
            begin = self._device.mark()
            plan.run(no_progress)
            end = self._device.mark()
            return plan.download(loop.x), end.ms_since(begin)
        finally:
            self._device.synchronize()

    def _plan_for(self, loop: DenoisingLoop, chunk: int) -> LoopPlan:
        sizes, steps = self._checked_sizes(loop), len(loop.schedule)
        key = PlanKey(tuple(sorted(sizes.items())), steps, loop.noise is not None, min(chunk, steps))
        plan = self._plan(key, sizes, loop)
        self.captured = plan.captured
        return plan

    def _plan(self, key: PlanKey, sizes: Sizes, loop: DenoisingLoop) -> LoopPlan:
        engine = self._engine_at(sizes)
        if key not in self._plans or self._plans[key].engine is not engine:
            self._plans[key] = self._new_plan(key, engine, loop)
        self._plans.move_to_end(key)
        while len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return self._plans[key]

    def _new_plan(self, key: PlanKey, engine: Engine, loop: DenoisingLoop) -> LoopPlan:
        (prediction,) = self._signature.outputs
        self._load_kernel(ddim_table(loop.schedule))
        plan = LoopPlan(self._device, engine, loop, prediction.name, key)
        if not plan.captured:
            _LOG.warning("this engine cannot be recorded into a CUDA graph; its steps are launched one by one")
        return plan

    def _load_kernel(self, solver: Array) -> None:
        """Launches the kernel over nothing: the driver loads it then, which must not fall into a recording."""
        table = self._device.allocate(solver.nbytes)
        self._device.upload(table, solver)
        launch_step(self._device, x_ptr=0, prediction_ptr=0, table_ptr=table.address, noise_ptr=0, k=0, n=0)
        self._device.synchronize()

    def _checked_sizes(self, loop: DenoisingLoop) -> Sizes:
        """The sizes of a run; raises ``ValueError`` where its arrays do not fit the signature or one another."""
        _check_prediction(self._signature, loop.state)
        steps, batch = len(loop.schedule), len(loop.x)
        for name, rows in loop.per_step.items():
            if len(rows) != steps:
                raise ValueError(f"expected {steps} rows of {name}, one per step, got {len(rows)}")
        if loop.noise is not None and loop.noise.dtype != np.float32:
            raise ValueError(f"expected noise in float32, got {loop.noise.dtype}")
        first_rows = {name: np.repeat(rows[:1], batch, axis=0) for name, rows in loop.per_step.items()}
        return self._signature.sizes_from_arrays({loop.state: loop.x, **loop.constants, **first_rows})

    def close(self) -> None:
        """Frees the memory and the graphs."""
        self._plans.clear()


def _check_prediction(signature: Signature, state: str) -> None:
    """Raises ``ValueError`` where the sampler kernel cannot read the prediction, or cannot write the state."""
    tensors: list[TensorSpec] = [*(spec for spec in signature.inputs if spec.name == state), *signature.outputs]
    if len(tensors) != 2 or len({spec.dims for spec in tensors}) != 1:
        raise ValueError(f"expected one output, of the dims of the input {state}; got {', '.join(map(str, tensors))}")
    if any(spec.dtype != "float32" for spec in tensors):
        raise ValueError(f"expected state and prediction in float32; got {', '.join(map(str, tensors))}")

"""The steps of one kind of run on the device: their memory, and what they enqueue, recorded into CUDA graphs.

A step is the denoiser's engine, whose per-step inputs point at this step's row of a table, and one launch of the
sampler kernel, which updates x in place by this step's row of the solver's table and writes the engine's next input.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from saishiki.runtime.backends.device import Completion, Device, Engine, Memory, Table, padded_bytes, table_rows
from saishiki.runtime.backends.protocol import DenoisingLoop, OnStep, over_batch
from saishiki.runtime.backends.sampler_kernel import StepMemory, launch_step
from saishiki.runtime.samplers import COLUMNS, Solver, history_slots
from saishiki.runtime.signature import Array, Sizes


@dataclass(frozen=True)
class Denoise:
    """Run the engine with the per-step inputs of step k: the prediction from its input."""

    k: int


@dataclass(frozen=True)
class UpdateState:
    """Launch the sampler kernel of step k: x, and the next input, from x and the prediction."""

    k: int


Operation = Denoise | UpdateState


def loop_program(steps: range) -> tuple[Operation, ...]:
    """What a run enqueues for some of its steps, in order."""
    return tuple(operation for k in steps for operation in (Denoise(k), UpdateState(k)))


def chunks_of(phases: Sequence[int], chunk: int) -> tuple[range, ...]:
    """The steps in groups of at most ``chunk``, each in one phase: ``chunks_of((0, 0, 0, 1), 2) == (0..1, 2, 3)``.

    Args:
        phases: (S,) of every step.
    """
    starts = [0]
    for k in range(1, len(phases)):
        if phases[k] != phases[k - 1] or k - starts[-1] == chunk:
            starts.append(k)
    return tuple(range(start, end) for start, end in pairwise([*starts, len(phases)]))


@dataclass(frozen=True)
class PlanKey:
    """What the recorded graphs depend on."""

    sizes: tuple[tuple[str, int], ...]
    phases: tuple[int, ...]
    slots: int
    noises: int
    history: int
    scaled: bool
    chunk: int


def plan_key(loop: DenoisingLoop, sizes: Sizes, chunk: int) -> PlanKey:
    """The key of a run; ``scaled`` where the engine's input is not always x itself."""
    solver, table = loop.solver, table_of(loop.solver)
    return PlanKey(
        sizes=tuple(sorted(sizes.items())),
        phases=tuple(loop.phase(k) for k in range(len(table))),
        slots=solver.slots,
        noises=solver.noises,
        history=history_slots(table),
        scaled=bool(solver.first_input != 1 or (table[:, COLUMNS.index("next_input")] != 1).any()),
        chunk=min(chunk, len(table)),
    )


def table_of(solver: Solver) -> Array:
    """The solver's table; raises ``ValueError`` where it has none."""
    if solver.table is None:
        raise ValueError(f"{solver.name} has no table, so it cannot run on the device alone; run it by the host loop")
    return solver.table


class LoopPlan:
    """The memory of one kind of run, and its steps, recorded where the engine allows it."""

    def __init__(self, device: Device, engine: Engine, loop: DenoisingLoop, prediction: str, key: PlanKey) -> None:
        self.device, self.engine, self.key = device, engine, key
        self._state = engine.memory[loop.state]
        self._per_step = {name: self._table(self._rows(name, loop)) for name in loop.per_step}
        self._at = self._step_memory(loop, engine.memory[prediction])
        self._uploaded: dict[int, Array] = {}
        self.captured = engine.is_capturable()
        self.chunks = tuple((steps, self._ready(loop_program(steps))) for steps in chunks_of(key.phases, key.chunk))

    def _step_memory(self, loop: DenoisingLoop, prediction: Memory) -> StepMemory:
        key, allocate = self.key, self.device.allocate
        # All rows are padded, so with one slot the kernel may run over the padding too: whole vectors, no remainder.
        n = self._state.nbytes // np.dtype(np.float32).itemsize if key.slots == 1 else loop.x.size
        return StepMemory(
            slots=key.slots,
            x=allocate(self._state.nbytes) if key.scaled else self._state,
            prediction=prediction,
            solver=allocate(table_of(loop.solver).nbytes),
            model_input=self._state if key.scaled else None,
            noise=None if loop.noise is None else self._table(loop.noise),
            noises=key.noises,
            history=allocate(key.history * n * np.dtype(np.float32).itemsize) if key.history else None,
            history_slots=key.history,
            n=n,
        )

    def _rows(self, name: str, loop: DenoisingLoop) -> Array:
        return self.engine.rows(name, _over_batches(loop.per_step[name], loop))

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
                launch_step(self.device, self._at, k)

    def upload(self, loop: DenoisingLoop) -> None:
        """Puts the contents of a run into the memory; what depends on the schedule alone, only where it changed.

        Of the constants, those of the first phase.
        """
        upload, at = self.device.upload, self._at
        upload(at.x, loop.x)
        if at.model_input is not None:
            upload(at.model_input, (loop.solver.first_input * loop.x).astype(np.float32))
        for name, array in loop.constants[self.key.phases[0]].items():
            upload(self.engine.memory[name], array)
        self.engine.prepare()
        if at.noise is not None and loop.noise is not None:
            upload(at.noise.memory, table_rows(loop.noise))
        solver = table_of(loop.solver)
        if self._is_new(at.solver, solver):
            upload(at.solver, solver)
        for name, rows in loop.per_step.items():
            if self._is_new(self._per_step[name].memory, rows):
                upload(self._per_step[name].memory, table_rows(self._rows(name, loop)))

    def _is_new(self, memory: Memory, content: Array) -> bool:
        """Whether the memory was last asked about for another content."""
        last = self._uploaded.get(memory.address)
        self._uploaded[memory.address] = content.copy()
        return last is None or not np.array_equal(last, content)

    def run(self, loop: DenoisingLoop, on_step: OnStep) -> None:
        """Runs all steps. Reports a chunk while the next one is already running, so that the device never waits."""
        under_way: tuple[range, Completion] | None = None
        held = loop.constants[self.key.phases[0]]
        for steps, enqueue in self.chunks:
            held = self._exchange(held, loop.constants[self.key.phases[steps.start]])
            enqueue()
            following = (steps, self.device.mark())
            if under_way is not None:
                _report(under_way, on_step)
            under_way = following
        if under_way is not None:
            _report(under_way, on_step)

    def _exchange(self, held: Mapping[str, Array], wanted: Mapping[str, Array]) -> Mapping[str, Array]:
        """Puts another phase's constants behind what is enqueued, those that differ."""
        new = [name for name, array in wanted.items() if array is not held[name]]
        for name in new:
            self.device.upload(self.engine.memory[name], wanted[name])
        if new:
            self.engine.prepare()
        return wanted

    def download(self, like: Array) -> Array:
        """x, once all steps are done."""
        x: Array = np.empty_like(like, order="C")
        self.device.download(self._at.x, x)
        return x


def _over_batches(rows: Array, loop: DenoisingLoop) -> Array:
    """(E, B, ...) from that or from (E, 1, ...)."""
    return np.stack([over_batch(row, len(loop.x)) for row in rows])


def _report(under_way: tuple[range, Completion], on_step: OnStep) -> None:
    steps, completion = under_way
    completion.wait()
    for k in steps:
        on_step(k, None)

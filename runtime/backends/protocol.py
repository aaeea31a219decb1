"""What a backend is: it loads modules of a bundle, and runs the denoising loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np

from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Precision
from saishiki.runtime.signature import Array, Signature

if TYPE_CHECKING:  # plans and samplers are loaded by what runs them
    from saishiki.runtime.plan import Plan
    from saishiki.runtime.plan.ops import AnyOp
    from saishiki.runtime.samplers import Solver

OnStep = Callable[[int, Array | None], None]
Clock = Literal["host", "device"]


def no_progress(k: int, x: Array | None) -> None:
    """An ``on_step`` that does nothing; a backend that sees this very function need not stop between steps."""


class Module(Protocol):
    """A loaded module: arrays in host memory in, arrays in host memory out."""

    @property
    def signature(self) -> Signature:
        """What goes in and comes out."""
        ...

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """The outputs by name. Raises ``ValueError`` for inputs that do not fit the signature or any profile."""
        ...


@dataclass(frozen=True)
class DenoisingLoop:
    """All that a run of a solver needs, in host memory. E evaluations of the network, S steps, B pictures.

    Args:
        state: name of the denoiser's input that takes x, scaled; the prediction is its only output, (G * B, C, H, W)
            for the solver's G slots.
        x: (B, C, H, W) fp32, where the solver begins: noise times its ``start_scale``.
        constants: inputs that stay the same, by name, with the batch in front: one set for each phase of the run.
        per_step: inputs that depend on the evaluation, by name: (E, B, ...), or (E, 1, ...) for all pictures alike.
        noise: (N, B, C, H, W) fp32 for the N noises that the solver draws, or None where it draws none.
        phases: (E,) which of ``constants`` an evaluation takes; empty where there is one set alone.

    Raises ``ValueError`` where one of them does not fit the solver.
    """

    solver: "Solver"
    state: str
    x: Array
    constants: tuple[Mapping[str, Array], ...]
    per_step: Mapping[str, Array]
    noise: Array | None
    phases: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_noise()
        self._check_phases()
        for name, rows in self.per_step.items():
            if len(rows) != self.evaluations:
                raise ValueError(f"expected {self.evaluations} rows of {name}, one per evaluation, got {len(rows)}")
            if rows.ndim < 2 or rows.shape[1] not in (1, len(self.x)):
                raise ValueError(f"expected {name} (E, 1 or {len(self.x)}, ...), got {rows.shape}")

    def _check_noise(self) -> None:
        noises = self.solver.noises
        if noises and self.noise is None:
            raise ValueError(f"{self.solver.steps} steps of {self.solver.name} need {noises} noises, got none")
        expected = (noises, *self.x.shape)
        if self.noise is not None and self.noise.shape != expected:
            raise ValueError(f"expected noise {expected}, one for every draw, got {self.noise.shape}")

    def _check_phases(self) -> None:
        if not self.constants:
            raise ValueError("expected one set of constants for each phase, got none")
        if not self.phases and len(self.constants) > 1:
            raise ValueError(f"expected phases, because there are {len(self.constants)} sets of constants; got none")
        known = range(len(self.constants))
        if self.phases and (len(self.phases) != self.evaluations or not all(phase in known for phase in self.phases)):
            raise ValueError(f"expected {self.evaluations} phases below {len(self.constants)}, got {self.phases}")

    @property
    def evaluations(self) -> int:
        """E: how often the network is called."""
        return len(self.solver.timesteps)

    def inputs(self, e: int) -> dict[str, Array]:
        """What evaluation e takes besides x, by name, with the whole batch in front."""
        rows = {name: over_batch(rows[e], len(self.x)) for name, rows in self.per_step.items()}
        return {**self.constants[self.phase(e)], **rows}

    def phase(self, e: int) -> int:
        """Which set of constants evaluation e takes."""
        return self.phases[e] if self.phases else 0


def over_batch(row: Array, batch: int) -> Array:
    """(B, ...) from (B, ...) or (1, ...)."""
    return row if len(row) == batch else np.repeat(row, batch, axis=0)


class Backend(Protocol):
    """Loads modules and runs loops on one device. Thread-safe."""

    @property
    def name(self) -> str:
        """The name users know it by: ``onnxruntime``, ``tensorrt-rtx`` or ``tensorrt``."""
        ...

    @property
    def default_precision(self) -> Precision:
        """The precision it runs best in."""
        ...

    def check(self, bundle: Bundle, module: str, precision: Precision) -> object:
        """Raises ``BackendError`` where the manifest tells that a module cannot be loaded here; reads no file."""
        ...

    def load(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        """Loads a module. Raises ``BackendError`` where the bundle has nothing for this backend and device."""
        ...

    def run_loop(self, denoiser: Module, loop: DenoisingLoop, on_step: OnStep) -> Array:
        """Runs the loop to its end: (B, C, H, W) fp32.

        ``on_step(k, x)`` is called after each step, with x where it is at hand in host memory, else None; an exception
        it raises ends the run.
        """
        ...

    def close(self) -> None:
        """Frees the device."""
        ...


@dataclass(frozen=True)
class TimedLoop:
    """A run of the loop: x after its last step, how long it took, and how much of that its steps were at work.

    Args:
        engine_ms: by ``clock``: ``device`` from the first step's start to the last one's end as the device saw it;
            ``host`` in calls of the denoiser, with the copies to a device where there is one.
    """

    x: Array
    wall_ms: float
    engine_ms: float
    clock: Clock


@runtime_checkable
class TimesLoops(Protocol):
    """A backend that can tell its engine's time from its own; the loop is the same as without."""

    def run_loop_timed(self, denoiser: Module, loop: DenoisingLoop) -> TimedLoop:
        """Runs the loop to its end, without reports between the steps."""
        ...


@runtime_checkable
class TimesItself(Protocol):
    """A module that can tell how long the device alone took."""

    def device_ms(self, **inputs: Array) -> float:
        """Runs once: device time in milliseconds, without copies from and to the host."""
        ...


@runtime_checkable
class TimesOps(Protocol):
    """A module that runs a plan, and can tell how long each of its operations takes."""

    @property
    def plan(self) -> "Plan":
        """As it is run here, which need not be as it is written."""
        ...

    def ops_ms(self, **inputs: Array) -> "Mapping[AnyOp, tuple[float, ...]]":
        """Device time of each operation alone, in milliseconds: some samples."""
        ...

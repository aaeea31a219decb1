"""What a backend is: it loads modules of a bundle, and runs the denoising loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Precision
from saishiki.runtime.schedule import DDIMSchedule
from saishiki.runtime.signature import Array, Signature

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
    """All that a DDIM run needs, in host memory.

    Args:
        state: name of the denoiser's input that takes x; the prediction is its only output.
        x: (B, C, H, W) fp32, at the schedule's first timestep.
        constants: inputs that stay the same over the steps, by name, with the batch in front.
        per_step: inputs that depend on the step alone, by name: (S, ...), repeated over the batch.
        noise: (S, B, C, H, W) fp32, or None where eta is 0.
    """

    schedule: DDIMSchedule
    state: str
    x: Array
    constants: Mapping[str, Array]
    per_step: Mapping[str, Array]
    noise: Array | None

    def __post_init__(self) -> None:
        steps = len(self.schedule)
        if self.noise is None and self.schedule.sigma.any():
            raise ValueError(f"{steps} steps at eta above 0 need noise")
        if self.noise is not None and self.noise.shape != (steps, *self.x.shape):
            raise ValueError(f"expected noise {(steps, *self.x.shape)}, one for every step, got {self.noise.shape}")


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

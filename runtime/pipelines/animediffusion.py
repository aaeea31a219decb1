"""AnimeDiffusion at run time: sketch and reference are channels of the denoiser's input; DDIM runs in pixel space."""

import threading
from dataclasses import dataclass, field

import numpy as np

from saishiki.runtime.backends.protocol import Backend, DenoisingLoop, Module, OnStep
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.manifest import Precision
from saishiki.runtime.noise import Noise
from saishiki.runtime.pipelines.protocol import Sampling
from saishiki.runtime.samplers import noise_reference, walk_forward
from saishiki.runtime.schedule import DDIMSchedule, DiffusionSchedule, ddim_schedule
from saishiki.runtime.signature import Array

FAMILY = "animediffusion"
STARTS = ("noise", "reference-walk", "noised-reference")

MAX_TIME_TABLES = 16
"""Time tables that are kept; a service that is asked for every number of steps must not grow for ever."""


@dataclass(frozen=True)
class AnimeDiffusionPipeline:
    """The two modules of the network on one backend. Thread-safe."""

    backend: Backend
    schedule: DiffusionSchedule
    time_projection: Module
    denoiser: Module
    _time_tables: dict[int, Array] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @classmethod
    def load(cls, bundle: Bundle, backend: Backend, precision: Precision) -> "AnimeDiffusionPipeline":
        """Loads the modules in the wanted precision; the time projection is always fp32."""

        def load(name: str) -> Module:
            return backend.load(bundle, name, bundle.module(name).closest(precision))

        return cls(backend, bundle.schedule(), load("time_projection"), load("denoiser"))

    def check(self, sampling: Sampling) -> None:
        """Raises ``ValueError`` or ``TypeError`` for steps, eta or a start out of range."""
        if sampling.start not in STARTS:
            raise ValueError(f"unknown start {sampling.start!r}; expected one of {', '.join(STARTS)}")
        ddim_schedule(self.schedule, steps=sampling.steps, eta=sampling.eta)

    def __call__(self, sketch: Array, reference: Array, sampling: Sampling, noise: Noise, on_step: OnStep) -> Array:
        """The images, (B, 3, H, W) fp32 about [-1, 1].

        Args:
            sketch: (B, 1, H, W) fp32 in [-1, 1], paper +1 and lines -1.
            reference: (B, 3, H, W) fp32 RGB in [-1, 1].
            noise: start (B, 3, H, W), and steps (S, B, 3, H, W) where eta is above 0.
        """
        self.check(sampling)
        schedule = ddim_schedule(self.schedule, steps=sampling.steps, eta=sampling.eta)
        condition = np.concatenate([sketch, reference], axis=1)
        loop = DenoisingLoop(
            schedule=schedule,
            state="noisy",
            x=self._start(sampling.start, noise.start, sketch, reference, condition, schedule),
            constants={"condition": condition},
            per_step={"time": self.time_table(schedule)},
            noise=noise.steps,
        )
        return self.backend.run_loop(self.denoiser, loop, on_step)

    def time_table(self, schedule: DDIMSchedule) -> Array:
        """(S, P) fp32: the time projections of every step; kept per number of steps."""
        steps = len(schedule)
        with self._lock:
            if steps not in self._time_tables:
                while len(self._time_tables) >= MAX_TIME_TABLES:
                    self._time_tables.pop(next(iter(self._time_tables)))
                self._time_tables[steps] = self.time_projection(t=schedule.t.astype(np.float32))["time"]
            return self._time_tables[steps]

    def denoise_untimed(self, x: Array, condition: Array) -> Array:
        """The noise in x, (B, 3, H, W), without a timestep: all-zero projections leave the time out exactly."""
        (time,) = (spec for spec in self.denoiser.signature.inputs if spec.name == "time")
        zeros = np.zeros(time.shape({"batch": len(x)}), np.float32)
        return self.denoiser(noisy=x, condition=condition, time=zeros)["eps"]

    def _start(
        self, start: str, noise: Array, sketch: Array, reference: Array, condition: Array, schedule: DDIMSchedule
    ) -> Array:
        if start == "noise":
            return noise
        if start == "noised-reference":
            image: Array = noise_reference(reference, sketch, noise, self.schedule).astype(np.float32)
            return image
        walked: Array = walk_forward(
            lambda x: self.denoise_untimed(x, condition), reference, noise, schedule, self.schedule.gammas
        )
        return walked

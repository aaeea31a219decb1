"""AnimeDiffusion at run time: sketch and reference are channels of the denoiser's input; DDIM runs in pixel space."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from saishiki.runtime.backends.protocol import Backend, DenoisingLoop, Module, OnStep
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.canvas import Mode as Fit
from saishiki.runtime.canvas import restore
from saishiki.runtime.manifest import Precision, SamplerDefaults
from saishiki.runtime.noise import Noise
from saishiki.runtime.options import OptionSpec, options_from
from saishiki.runtime.pipelines.protocol import Draws, Pictures
from saishiki.runtime.preparation import LineArt, Prepared, prepare
from saishiki.runtime.samplers import ddim_solver, noise_reference, walk_forward
from saishiki.runtime.schedule import DDIMSchedule, DiffusionSchedule, ddim_schedule
from saishiki.runtime.signature import Array

FAMILY = "animediffusion"
STARTS = ("noise", "reference-walk", "noised-reference")

MAX_TIME_TABLES = 16
"""Time tables that are kept; a service that is asked for every number of steps must not grow for ever."""


@dataclass(frozen=True)
class AnimeDiffusionOptions:
    """How to colour; every field says what it does in its own help."""

    steps: Annotated[int | None, OptionSpec("whole", "Sampling steps [as published].")] = None
    eta: Annotated[
        float | None, OptionSpec("number", "0 is deterministic, 1 adds noise in every step [as published].")
    ] = None
    start: Annotated[str | None, OptionSpec("text", f"{', '.join(STARTS[:-1])} or {STARTS[-1]} [as published].")] = None
    fit: Annotated[
        Fit,
        OptionSpec(
            "choice",
            "pad keeps all of the sketch, crop its centre as published, stretch changes its aspect.",
            choices=("pad", "crop", "stretch"),
        ),
    ] = "pad"
    line_art: Annotated[
        LineArt,
        OptionSpec(
            "choice",
            "auto extracts lines (XDoG) where the sketch is not a line drawing, xdog always, as-is never.",
            choices=("auto", "as-is", "xdog"),
        ),
    ] = "auto"
    distort_reference: Annotated[
        bool, OptionSpec("switch", "Warp the reference at random, as the published test code does.")
    ] = False


@dataclass(frozen=True)
class Sampling:
    """How to sample: the number of steps, eta (0 deterministic .. 1 as published), and what the run starts from."""

    steps: int
    eta: float
    start: str


@dataclass(frozen=True)
class AnimeDiffusionPipeline:
    """The two modules of the network on one backend. Thread-safe."""

    backend: Backend
    schedule: DiffusionSchedule
    defaults: SamplerDefaults
    time_projection: Module
    denoiser: Module
    _time_tables: dict[int, Array] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    options_type = AnimeDiffusionOptions
    reference_cache = None

    @classmethod
    def load(cls, bundle: Bundle, backend: Backend, precision: Precision) -> "AnimeDiffusionPipeline":
        """Loads the modules in the wanted precision; the time projection is always fp32."""

        def load(name: str) -> Module:
            return backend.load(bundle, name, bundle.module(name).closest(precision))

        return cls(backend, bundle.schedule(), bundle.manifest.sampler, load("time_projection"), load("denoiser"))

    def options(self, given: Mapping[str, Any]) -> AnimeDiffusionOptions:
        """The family's options; see :class:`saishiki.runtime.pipelines.protocol.Pipeline`."""
        options = options_from(AnimeDiffusionOptions, given, owner="AnimeDiffusion")
        self.check(self.sampling(options))
        return options

    def sampling(self, options: AnimeDiffusionOptions) -> Sampling:
        """How to sample, with the bundle's defaults where an option says nothing."""
        defaults = self.defaults
        return Sampling(
            steps=defaults.steps if options.steps is None else options.steps,
            eta=defaults.eta if options.eta is None else options.eta,
            start=defaults.start if options.start is None else options.start,
        )

    def check(self, sampling: Sampling) -> None:
        """Raises ``ValueError`` or ``TypeError`` for steps, eta or a start out of range."""
        if sampling.start not in STARTS:
            raise ValueError(f"unknown start {sampling.start!r}; expected one of {', '.join(STARTS)}")
        ddim_schedule(self.schedule, steps=sampling.steps, eta=sampling.eta)

    def prepare(self, pictures: Pictures, options: AnimeDiffusionOptions) -> "AnimeDiffusionWork":
        """Reads the pictures and lays them on the working area; raises ``ValueError`` where a reference is missing."""
        if any(reference is None for reference in pictures.references):
            raise ValueError("AnimeDiffusion colours after a reference; give one for every sketch")
        warps = pictures.seeds if options.distort_reference else (None,) * len(pictures.seeds)
        prepared = [
            prepare(
                sketch,
                reference,
                height=pictures.height,
                width=pictures.width,
                fit=options.fit,
                line_art=options.line_art,
                warp_seed=warp,
            )
            for sketch, reference, warp in zip(pictures.sketches, pictures.references, warps, strict=True)
        ]
        return AnimeDiffusionWork(self, self.sampling(options), prepared)

    def replay(self, inputs: Mapping[str, Array], settings: Mapping[str, Any], on_step: OnStep) -> Array:
        """A recorded run: inputs ``sketch``, ``reference``, ``start`` and ``noise``; settings are those of Sampling."""
        noise = Noise(start=inputs["start"], steps=inputs.get("noise"))
        return self(inputs["sketch"], inputs["reference"], Sampling(**settings), noise, on_step)

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
            solver=ddim_solver(schedule),
            state="noisy",
            x=self._start(sampling.start, noise.start, sketch, reference, condition, schedule),
            constants=({"condition": condition},),
            per_step={"time": self.time_table(schedule)[:, None]},
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


@dataclass(frozen=True)
class AnimeDiffusionWork:
    """The prepared pictures of one call."""

    pipeline: AnimeDiffusionPipeline
    sampling: Sampling
    prepared: Sequence[Prepared]

    @property
    def steps(self) -> int:
        """Sampling steps."""
        return self.sampling.steps

    @property
    def draws(self) -> Draws:
        """Noise of the working size, in every step where eta is above 0."""
        _, height, width = self.prepared[0].reference.shape
        return Draws((3, height, width), self.sampling.steps if self.sampling.eta > 0 else 0)

    def run(self, part: slice, noise: Noise, on_step: OnStep) -> Array:
        """The images of some of the pictures, (b, 3, H, W)."""
        sketch = np.stack([item.sketch for item in self.prepared[part]])
        reference = np.stack([item.reference for item in self.prepared[part]])
        return self.pipeline(sketch, reference, self.sampling, noise, on_step)

    def finish(self, index: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture at the size of the sketch, or of the part of it that was coloured."""
        return restore(self.prepared[index].canvas, pixels)

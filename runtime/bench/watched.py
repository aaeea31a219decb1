"""A colorizer whose denoising loops are watched, so that one picture tells what its steps took."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from saishiki.runtime.backends import Backend, DenoisingLoop, Module, open_backend
from saishiki.runtime.backends.protocol import Clock, OnStep, TimesLoops
from saishiki.runtime.bench.runners import Runner
from saishiki.runtime.bundle import Bundle
from saishiki.runtime.colorizer import Colorizer
from saishiki.runtime.manifest import Precision
from saishiki.runtime.pipelines import load_pipeline
from saishiki.runtime.signature import Array


@dataclass(frozen=True)
class LoopTimes:
    """What a loop took, and what of it the engine; None where the backend cannot tell."""

    wall_ms: float
    engine_ms: float | None
    clock: Clock


class WatchedBackend:
    """A backend that keeps the modules it has loaded, and the times of the loops each thread has run."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._threads = threading.local()
        self.modules: dict[str, Module] = {}

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def default_precision(self) -> Precision:
        return self._backend.default_precision

    def check(self, bundle: Bundle, module: str, precision: Precision) -> object:
        return self._backend.check(bundle, module, precision)

    def load(self, bundle: Bundle, module: str, precision: Precision) -> Module:
        self.modules[module] = self._backend.load(bundle, module, precision)
        return self.modules[module]

    def run_loop(self, denoiser: Module, loop: DenoisingLoop, on_step: OnStep) -> Array:
        """Runs the loop, by the backend's own clock where it has one: ``on_step`` is not called then."""
        if isinstance(self._backend, TimesLoops):
            timed = self._backend.run_loop_timed(denoiser, loop)
            self._loops().append(LoopTimes(timed.wall_ms, timed.engine_ms, timed.clock))
            return timed.x
        begin = perf_counter()
        x = self._backend.run_loop(denoiser, loop, on_step)
        self._loops().append(LoopTimes((perf_counter() - begin) * 1e3, None, "host"))
        return x

    def take_loops(self) -> list[LoopTimes]:
        """The loops that this thread has run since it last asked."""
        loops, self._threads.loops = self._loops(), []
        return loops

    def _loops(self) -> list[LoopTimes]:
        if not hasattr(self._threads, "loops"):
            self._threads.loops = []
        loops: list[LoopTimes] = self._threads.loops
        return loops

    def close(self) -> None:
        self._backend.close()


@contextmanager
def open_watched(bundle: Bundle, runner: Runner) -> Iterator[tuple[Colorizer, WatchedBackend]]:
    """A colorizer on a watched backend; frees the device at the end."""
    backend = WatchedBackend(open_backend(bundle, runner.backend, runner.device))
    try:
        pipeline = load_pipeline(bundle, backend, runner.precision)
        yield Colorizer(bundle, backend, pipeline, runner.precision), backend
    finally:
        backend.close()

"""A whole image by our own engine: its error, its bits, its launches, its time, and the memory of a thousand.

AnimeDiffusion with the random weights of :mod:`battery.network`, DDIM with eta 0: the state goes to the GPU, all steps
are one CUDA graph, the picture comes back. ``device`` times are from the graph's begin to its end by events, ``wall``
times of the same calls by the host's clock, with the copies of state and condition.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from battery.clock import fitting, percentiles, relative_error, warmed_up
from battery.network import Network, build_network, prepare_inference, schedule_of
from battery.part import Options, Row
from battery.plan_backends import CUDNN, TRITON, Watched, plan_backend, watch
from battery.plan_subjects import animediffusion, animediffusion_scale
from saishiki.runtime.backends.cuda_backend import CudaBackend, PlannedModule
from saishiki.runtime.backends.protocol import DenoisingLoop
from saishiki.runtime.samplers.animediffusion import ddim_solver
from saishiki.runtime.signature import Array

BUDGET = 3e-2
"""Of a step and of the image, as for fp16 in torch (``animediffusion.py``)."""
GOAL_MS, STRETCH_MS, HOST_GOAL_US = 15.0, 8.0, 100.0
RUNS, IMAGES = 100, 1000
GROWTH_BYTES = {"gpu": 0, "host": 16 << 20}
"""What memory may grow by; the host's allocator keeps some of what was freed."""


def by_cudnn(options: Options) -> Iterator[Row]:
    """Convolutions, linear layers and attention by cuDNN, the rest by our kernels."""
    return images(CUDNN, options)


def by_triton(options: Options) -> Iterator[Row]:
    """Our kernels alone."""
    return images(TRITON, options)


@dataclass(frozen=True)
class Engine:
    """The denoiser on a backend, and a run for it."""

    backend: CudaBackend
    module: PlannedModule
    loop: DenoisingLoop
    watched: Watched

    def sample(self) -> tuple[Array, float]:
        """The image, and the device's milliseconds; raises as the loop does."""
        with self.backend.working():
            return self.module.loop.run_timed(self.loop)


@contextmanager
def open_engine(name: str, options: Options, network: Network) -> Iterator[Engine]:
    """The denoiser of :func:`battery.network.build_network` at the scale of plans, ready to run."""
    with plan_backend(name, options) as backend:
        loaded = animediffusion(options).loaded
        watched = watch(backend.device)
        with backend.working():
            module = PlannedModule(backend, loaded)
        try:
            yield Engine(backend, module, loop_of(network, options), watched)
        finally:
            with backend.working():
                module.close()


def loop_of(network: Network, options: Options) -> DenoisingLoop:
    """The run that ``Network.sample`` is."""
    schedule = schedule_of(animediffusion_scale(options).config, options)
    return DenoisingLoop(
        solver=ddim_solver(schedule),
        state="noisy",
        x=network.noisy.cpu().numpy(),
        constants=({"condition": network.condition.cpu().numpy()},),
        per_step={"time": network.time.cpu().numpy()[:, None]},
        noise=None,
    )


def images(name: str, options: Options) -> Iterator[Row]:
    """The rows of one backend; after a wrong step or image there are no others."""
    prepare_inference(options)
    network = build_network(options, half=False, channels_last=False, scale=animediffusion_scale(options))
    truth = network.sample()
    with open_engine(name, options, network) as engine:
        row = first_step(engine, network.predict())
        yield {"backend": name, **row}
        if row.get("red"):
            return
        row, image = first_image(engine, truth, options)
        yield {"backend": name, **row}
        if row.get("red"):
            return
        runs = repeated(engine, options)
        yield {"backend": name, **same_bits(runs, image)}
        yield {"backend": name, **launches(runs, options)}
        yield {"backend": name, "what": "image, whole loop", "steps": options.steps, **image_times(runs, options)}
        yield {"backend": name, **growth(engine, options)}


def first_step(engine: Engine, truth: Any) -> Row:
    """The prediction of the first step against torch in fp32: an image shows little of it where it is clamped."""
    inputs = {engine.loop.state: engine.loop.x, **engine.loop.inputs(0)}
    (prediction,) = engine.module(**inputs).values()
    error = relative_error(torch.from_numpy(prediction), truth.cpu())
    red = {} if error <= BUDGET else {"red": True}
    return {"what": "step against torch fp32", "error": error, "budget": BUDGET, **red}


def first_image(engine: Engine, truth: Any, options: Options) -> tuple[Row, Array]:
    """The first image against torch in fp32, with everything that is set up for it."""
    begin = perf_counter()
    image, _ = engine.sample()
    first_s = {} if options.dry_run else {"first_s": round(perf_counter() - begin, 2)}
    error = relative_error(torch.from_numpy(image), truth.cpu())
    red = {} if error <= BUDGET else {"red": True}
    return {"what": "image against torch fp32", "error": error, "budget": BUDGET, **red, **first_s}, image


@dataclass(frozen=True)
class Runs:
    """What some runs of the same image gave and took, behind their warm-up."""

    images: list[Array]
    device_ms: list[float]
    wall_ms: list[float]
    warmup: Row
    watched: Watched


def repeated(engine: Engine, options: Options) -> Runs:
    """As many runs as fit; one in a dry run."""
    warmup = {} if options.dry_run else warmed_up(lambda: engine.sample()[1])
    count = 1 if options.dry_run else fitting(engine.sample()[1], RUNS)
    engine.watched.forget()
    runs = Runs([], [], [], warmup, engine.watched)
    for _ in range(count):
        begin = perf_counter()
        image, ms = engine.sample()
        runs.wall_ms.append((perf_counter() - begin) * 1e3)
        runs.images.append(image)
        runs.device_ms.append(ms)
    return runs


def same_bits(runs: Runs, image: Array) -> Row:
    """Whether all runs give the first image's bits."""
    equal = all(np.array_equal(other.view(np.uint32), image.view(np.uint32)) for other in runs.images)
    return {
        "what": "bits of all runs",
        "runs": 1 + len(runs.images),
        "equal": equal,
        **({} if equal else {"red": True}),
    }


def launches(runs: Runs, options: Options) -> Row:
    """How many graphs an image launches, what it launches besides, and the host's time in a graph's launch."""
    watched, count = runs.watched, len(runs.images)
    graphs, others = len(watched.graph_us) / count, watched.launches / count
    row: Row = {"what": "launches of an image", "graphs": graphs, "other_launches": others}
    row |= {} if (graphs, others) == (1, 0) else {"red": True}
    if options.dry_run:
        return row
    times = percentiles(watched.graph_us, "us", 1)
    return {**row, **times, "goal_us": HOST_GOAL_US, "met": times["p50_us"] < HOST_GOAL_US}


def image_times(runs: Runs, options: Options) -> Row:
    """Device and wall milliseconds of an image, and whether the goals are met; nothing in a dry run."""
    if options.dry_run:
        return {}
    row = percentiles(runs.device_ms)
    goals = {"goal_ms": GOAL_MS, "met": row["p50_ms"] <= GOAL_MS}
    goals |= {"stretch_ms": STRETCH_MS, "stretch_met": row["p50_ms"] <= STRETCH_MS}
    return {**row, **runs.warmup, **goals, "wall_p50_ms": percentiles(runs.wall_ms)["p50_ms"]}


def growth(engine: Engine, options: Options) -> Row:
    """What memory grows by over many images, on the GPU and on the host."""
    count = 1 if options.dry_run else IMAGES
    before = _taken(engine)
    for _ in range(count):
        engine.sample()
    grown = {name: taken - before[name] for name, taken in _taken(engine).items()}
    red = any(grown[name] > allowed for name, allowed in GROWTH_BYTES.items())
    return {
        "what": f"memory over {count} images",
        **{f"{name}_growth_bytes": nbytes for name, nbytes in grown.items()},
        **({"red": True} if red else {}),
    }


def _taken(engine: Engine) -> dict[str, int]:
    """Bytes that are not free on the GPU, and the process's resident ones."""
    with engine.backend.working():
        free = engine.backend.device.free_bytes()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"gpu": -free, "host": pages * 4096}


def beside(rival_ms: float | None, options: Options) -> Iterator[Row]:
    """The image by both backends in this very process, and how many times as fast as the rival it is.

    A dry run leaves it out: it is what the part ``plan_cudnn`` does.

    Args:
        rival_ms: p50 of the rival's image; None where it has none.
    """
    if options.dry_run:
        return
    network = build_network(options, half=False, channels_last=False, scale=animediffusion_scale(options))
    for name in (CUDNN, TRITON):
        labels = {"what": "loop, our engine", "backend": name, "steps": options.steps}
        try:
            with open_engine(name, options, network) as engine:
                row = image_times(repeated(engine, options), options)
        except Exception as error:  # the rival's rows must not be lost
            yield {**labels, "unavailable": str(error)[-4000:]}
            continue
        ratio = {"compiled_over_ours": round(rival_ms / row["p50_ms"], 3)} if rival_ms and "p50_ms" in row else {}
        yield {**labels, **row, **ratio}

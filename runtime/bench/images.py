"""The whole image, and what its time is spent on: the steps' engine, the host around it, and all that is not a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from saishiki.runtime.backends.protocol import Clock
from saishiki.runtime.bench.measure import Collected, Warmup, collect
from saishiki.runtime.bench.pictures import SEED, Pixels, draw_sketch, paint_reference
from saishiki.runtime.bench.plan import Plan
from saishiki.runtime.bench.schema import Row, Subject
from saishiki.runtime.bench.summary import summarize
from saishiki.runtime.bench.watched import WatchedBackend
from saishiki.runtime.colorizer import Colorizer
from saishiki.runtime.manifest import Manifest


@dataclass(frozen=True)
class Task:
    """The picture that is coloured, at the bundle's own size, and in how many steps.

    Its reference is new each time: what a family keeps of references between calls is forgotten before. A batch has one
    reference for all its sketches.
    """

    sketch: Pixels
    reference: Pixels
    steps: int

    def __call__(self, colorizer: Colorizer, batch: int = 1) -> object:
        """Colours it, or a batch of it."""
        if colorizer.reference_cache is not None:
            colorizer.reference_cache.clear()
        options: dict[str, Any] = {"steps": self.steps, "seed": SEED}
        if batch == 1:
            return colorizer(self.sketch, self.reference, **options)
        return colorizer([self.sketch] * batch, [self.reference] * batch, **options)

    def sizes(self, **more: int) -> dict[str, int]:
        """What a row about the task depends on."""
        height, width = self.sketch.shape[:2]
        return {"batch": 1, "height": height, "width": width, "steps": self.steps} | more


def task_of(manifest: Manifest, plan: Plan) -> Task:
    """One picture of the size that the bundle is tuned for, with its own number of steps, or the plan's if less."""
    tuned, steps = manifest.profiles[0].opt, manifest.sampler.steps
    size = tuned["height"], tuned["width"]
    return Task(draw_sketch(*size), paint_reference(*size), steps if plan.steps is None else min(steps, plan.steps))


@dataclass(frozen=True)
class ImageTimes:
    """One image: all of it, its loops, and of those the engine; None where the backend cannot tell."""

    wall_ms: float
    loop_ms: float
    engine_ms: float | None
    clock: Clock


def image_rows(colorizer: Colorizer, watched: WatchedBackend, task: Task, plan: Plan) -> tuple[Row, ...]:
    """The rows of one image and of its steps, all from the same runs."""
    collected = _collect_images(colorizer, watched, task, plan)
    steps = task.steps
    times = collected.samples
    series: dict[Subject, tuple[Clock, list[float]]] = {
        "image": ("host", [t.wall_ms for t in times]),
        "step": ("host", [t.loop_ms / steps for t in times]),
        "around the steps": ("host", [t.wall_ms - t.loop_ms for t in times]),
    }
    told = [(t.engine_ms, t) for t in times if t.engine_ms is not None]
    if told:
        series["step engine"] = (times[0].clock, [engine / steps for engine, _ in told])
        series["step host overhead"] = ("host", [(t.loop_ms - engine) / steps for engine, t in told])
    return tuple(
        row_of(subject, task.sizes(), samples, warmup=collected.warmup, clock=clock)
        for subject, (clock, samples) in series.items()
    )


def image_again_row(colorizer: Colorizer, watched: WatchedBackend, task: Task, plan: Plan) -> Row:
    """The whole image once more."""
    collected = _collect_images(colorizer, watched, task, plan)
    samples = [t.wall_ms for t in collected.samples]
    return row_of("image again", task.sizes(), samples, warmup=collected.warmup)


def _collect_images(colorizer: Colorizer, watched: WatchedBackend, task: Task, plan: Plan) -> Collected[ImageTimes]:
    def run() -> ImageTimes:
        watched.take_loops()
        begin = perf_counter()
        task(colorizer)
        wall_ms = (perf_counter() - begin) * 1e3
        loops = watched.take_loops()
        engines = [loop.engine_ms for loop in loops if loop.engine_ms is not None]
        return ImageTimes(
            wall_ms=wall_ms,
            loop_ms=sum(loop.wall_ms for loop in loops),
            engine_ms=sum(engines) if len(engines) == len(loops) else None,
            clock=loops[-1].clock,
        )

    return collect(run, plan.image, ms_of=lambda t: t.wall_ms)


def row_of(
    subject: Subject,
    sizes: Mapping[str, int],
    samples: list[float],
    *,
    part: str = "",
    clock: Clock = "host",
    warmup: Warmup | None = None,
    images_per_s: float | None = None,
) -> Row:
    """A row with the summary of its samples."""
    return Row(subject, part, sizes, clock, warmup, summarize(samples), images_per_s, tuple(samples))

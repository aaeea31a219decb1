from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from saishiki.runtime.backends.protocol import TimedLoop
from saishiki.runtime.bench.images import image_again_row, image_rows, task_of
from saishiki.runtime.bench.pictures import draw_inputs, draw_sketch, paint_reference
from saishiki.runtime.bench.plan import FULL
from saishiki.runtime.bench.runners import Runner
from saishiki.runtime.bench.watched import WatchedBackend, open_watched
from saishiki.runtime.colorizer import Colorizer
from saishiki.runtime.images import is_line_art
from saishiki.runtime.pipelines import load_pipeline
from saishiki.runtime.signature import Signature, TensorSpec
from tests.runtime.pipelines.colorizediffusion.stand_ins import FakeBackend, bundle_of

RUNNER = Runner("onnxruntime", "cpu", "fp32")


class Told:
    """A backend that runs loops on another one and tells fixed times."""

    def __init__(self, backend):
        self._backend = backend
        self.name, self.default_precision = backend.name, backend.default_precision
        self.load, self.check, self.close = backend.load, backend.check, backend.close

    def run_loop(self, denoiser, loop, on_step):
        return self._backend.run_loop(denoiser, loop, on_step)


class Telling(Told):
    def run_loop_timed(self, denoiser, loop):
        x = self._backend.run_loop(denoiser, loop, lambda k, x: None)
        return TimedLoop(x, wall_ms=50.0, engine_ms=40.0, clock="device")


def rows_with(opened, backend, plan):
    watched = WatchedBackend(backend)
    colorizer = Colorizer(opened, watched, load_pipeline(opened, watched, "fp32"), "fp32")
    rows = image_rows(colorizer, watched, task_of(opened.manifest, plan), plan)
    return {row.subject: row for row in rows}


def test_an_image_is_split_into_engine_host_and_rest(opened, backend, quick):
    rows = rows_with(opened, Telling(backend), quick)
    assert set(rows) == {"image", "step", "around the steps", "step engine", "step host overhead"}
    assert (rows["step"].samples_ms[0], rows["step engine"].samples_ms[0]) == (50.0, 40.0)
    assert rows["step host overhead"].samples_ms[0] == 10.0
    assert (rows["step engine"].clock, rows["step"].clock) == ("device", "host")
    image, rest = rows["image"].samples_ms[0], rows["around the steps"].samples_ms[0]
    assert rest == pytest.approx(image - 50.0)


def test_every_image_has_a_new_reference():
    made, fake = bundle_of("v2"), FakeBackend()
    colorizer = Colorizer(made, fake, load_pipeline(made, fake, "fp32"), "fp32")
    task = task_of(made.manifest, FULL)
    for batch in (1, 1, 2):
        task(colorizer, batch)
    assert fake.calls["image_encoder"] == fake.calls["context_projector"] == 3
    assert fake.calls["vae_decoder"] == 4


def test_times_are_per_step(opened, backend, quick):
    plan = type(quick)(**{**vars(quick), "steps": 5})
    rows = rows_with(opened, Telling(backend), plan)
    assert (rows["step"].samples_ms[0], rows["step engine"].samples_ms[0]) == (10.0, 8.0)
    assert rows["step"].sizes["steps"] == 5


def test_a_backend_that_cannot_tell_gets_no_engine_row(opened, backend, quick):
    rows = rows_with(opened, Told(backend), quick)
    assert set(rows) == {"image", "step", "around the steps"}
    assert rows["step"].summary.p50_ms > 0


@pytest.mark.usefixtures("one_thread")
def test_onnxruntime_tells_its_modules_time(opened, quick):
    task = task_of(opened.manifest, quick)
    with open_watched(opened, RUNNER) as (colorizer, watched):
        rows = {row.subject: row for row in image_rows(colorizer, watched, task, quick)}
        again = image_again_row(colorizer, watched, task, quick)
        assert set(watched.modules) == {"time_projection", "denoiser"}
    loop, engine = rows["step"].samples_ms[0], rows["step engine"].samples_ms[0]
    assert 0 < engine < loop < rows["image"].samples_ms[0]
    assert rows["step host overhead"].samples_ms[0] == pytest.approx(loop - engine)
    assert again.subject == "image again"


def test_watching_changes_no_picture(opened, backend, quick):
    task = task_of(opened.manifest, quick)
    watched = WatchedBackend(backend)
    colorizer = Colorizer(opened, watched, load_pipeline(opened, watched, "fp32"), "fp32")
    plain = Colorizer(opened, backend, load_pipeline(opened, backend, "fp32"), "fp32")
    np.testing.assert_array_equal(np.asarray(task(colorizer)), np.asarray(task(plain)))


def test_each_thread_takes_its_own_loops(backend):
    watched = WatchedBackend(Telling(backend))
    watched._loops().append("mine")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(watched.take_loops).result() == []
    assert watched.take_loops() == ["mine"]
    assert watched.take_loops() == []


def test_task_of(opened, quick):
    full, brief = task_of(opened.manifest, FULL), task_of(opened.manifest, quick)
    assert (full.steps, brief.steps) == (10, 1)
    assert full.sizes(callers=2) == {"batch": 1, "height": 32, "width": 32, "steps": 10, "callers": 2}


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (256, 256), (512, 768)])
def test_pictures_are_line_art_and_colours_and_always_the_same(size):
    sketch, reference = draw_sketch(*size), paint_reference(*size)
    assert sketch.shape == reference.shape == (*size, 3)
    assert is_line_art(sketch)
    assert len(np.unique(reference.reshape(-1, 3), axis=0)) > 8
    np.testing.assert_array_equal(sketch, draw_sketch(*size))


def test_draw_inputs():
    signature = Signature((TensorSpec("x", "float16", ("batch", "3")), TensorSpec("k", "int64", ("batch",))), (), {})
    inputs = draw_inputs(signature, {"batch": 2})
    assert {name: (array.shape, str(array.dtype)) for name, array in inputs.items()} == {
        "x": ((2, 3), "float16"),
        "k": ((2,), "int64"),
    }
    assert inputs["x"].std() > 0

from dataclasses import replace

import numpy as np
import pytest

from saishiki.runtime import BundleError
from saishiki.runtime.backends.protocol import no_progress
from saishiki.runtime.noise import draw_noise
from saishiki.runtime.pipelines import FAMILIES, AnimeDiffusionPipeline, Sampling, load_pipeline, option_types
from saishiki.runtime.pipelines.animediffusion import FAMILY, MAX_TIME_TABLES
from saishiki.runtime.pipelines.colorizediffusion import modules as colorizediffusion
from saishiki.runtime.samplers import noise_reference, sample_ddim, walk_forward
from saishiki.runtime.schedule import ddim_schedule

SHAPE = (3, 32, 32)
SAMPLING = Sampling(steps=3, eta=1.0, start="noise")


@pytest.fixture(scope="module")
def pipeline(bundle, backend):
    return load_pipeline(bundle, backend, "fp32")


def pictures(batch):
    rng = np.random.default_rng(0)
    sketch = rng.choice(np.float32([-1, 1]), (batch, 1, 32, 32))
    return sketch, rng.uniform(-1, 1, (batch, *SHAPE)).astype(np.float32)


def run(pipeline, sampling, batch=2):
    noise = draw_noise(range(batch), SHAPE, steps=sampling.steps if sampling.eta else 0)
    return pipeline(*pictures(batch), sampling, noise, no_progress)


def expected(pipeline, sampling, start, batch=2):
    """The same in loops written out, with a timestep's projection asked for one by one."""
    sketch, reference = pictures(batch)
    condition = np.concatenate([sketch, reference], axis=1)
    tables = ddim_schedule(pipeline.schedule, steps=sampling.steps, eta=sampling.eta)
    noise = draw_noise(range(batch), SHAPE, steps=sampling.steps if sampling.eta else 0)

    def denoise(x, k):
        time = pipeline.time_projection(t=np.full(batch, tables.t[k], np.float32))["time"]
        return pipeline.denoiser(noisy=x, condition=condition, time=time)["eps"]

    return sample_ddim(denoise, start(noise.start), tables, noise=noise.steps)


def test_families():
    assert (FAMILY, *colorizediffusion.FAMILIES) == FAMILIES
    assert list(option_types()) == ["animediffusion", *(f"colorizediffusion-{name}" for name in ("v1", "v1.5", "v2"))]


def test_load_takes_the_precision_where_there_is_one(bundle):
    class Backend:
        def load(self, bundle, module, precision):
            return module, precision

    loaded = AnimeDiffusionPipeline.load(bundle, Backend(), "fp16")
    assert (loaded.time_projection, loaded.denoiser) == (("time_projection", "fp32"), ("denoiser", "fp16"))
    assert loaded.schedule.timesteps == 1000


def test_load_of_an_unknown_family(bundle, backend):
    unknown = replace(bundle, manifest=replace(bundle.manifest, family="sparkle"))
    with pytest.raises(BundleError, match=r"unknown family 'sparkle', expected one of animediffusion, .*; upgrade"):
        load_pipeline(unknown, backend, "fp32")


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_start_from_noise(pipeline, eta):
    sampling = replace(SAMPLING, eta=eta)
    np.testing.assert_allclose(run(pipeline, sampling), expected(pipeline, sampling, lambda x: x), atol=1e-4)


def test_start_from_the_noised_reference(pipeline):
    sampling, (sketch, reference) = replace(SAMPLING, start="noised-reference"), pictures(2)

    def start(noise):
        return noise_reference(reference, sketch, noise, pipeline.schedule)

    np.testing.assert_allclose(run(pipeline, sampling), expected(pipeline, sampling, start), atol=1e-4)


def test_start_from_the_walk(pipeline):
    sampling, (sketch, reference) = replace(SAMPLING, start="reference-walk"), pictures(2)
    tables = ddim_schedule(pipeline.schedule, steps=3, eta=1.0)
    condition = np.concatenate([sketch, reference], axis=1)

    def untimed(x):
        time = np.zeros((2, pipeline.time_table(tables).shape[1]), np.float32)
        return pipeline.denoiser(noisy=x, condition=condition, time=time)["eps"]

    def start(noise):
        return walk_forward(untimed, reference, noise, tables, pipeline.schedule.gammas)

    got = run(pipeline, sampling)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected(pipeline, sampling, start), atol=1e-4)


def test_time_table_has_a_row_for_every_step(pipeline):
    tables = ddim_schedule(pipeline.schedule, steps=4, eta=0.0)
    table = pipeline.time_table(tables)
    assert table is pipeline.time_table(tables)
    for row, t in zip(table, tables.t, strict=True):
        np.testing.assert_allclose(row, pipeline.time_projection(t=np.float32([t]))["time"][0], atol=1e-5)


def test_time_tables_do_not_pile_up(bundle, backend):
    pipeline = load_pipeline(bundle, backend, "fp32")
    for steps in range(1, MAX_TIME_TABLES + 4):
        pipeline.time_table(ddim_schedule(pipeline.schedule, steps=steps, eta=0.0))
    assert list(pipeline._time_tables) == list(range(4, MAX_TIME_TABLES + 4))


def test_on_step_sees_every_step(pipeline):
    noise, seen = draw_noise((0,), SHAPE, steps=3), []
    result = pipeline(*pictures(1), SAMPLING, noise, lambda k, x: seen.append((k, x.copy())))
    assert [k for k, _ in seen] == [0, 1, 2]
    np.testing.assert_array_equal(seen[-1][1], result)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "end"}, "unknown start 'end'; expected one of noise, reference-walk, noised-reference"),
        ({"steps": 0}, "steps must be between 1 and 999, got 0"),
        ({"eta": 1.5}, "eta must be between 0"),
    ],
)
def test_wrong_sampling(pipeline, changes, message):
    sampling = replace(SAMPLING, **changes)
    with pytest.raises(ValueError, match=message):
        pipeline.check(sampling)
    with pytest.raises(ValueError, match=message):
        pipeline(*pictures(1), sampling, draw_noise((0,), SHAPE, steps=3), no_progress)


def test_replay_is_the_same_run(pipeline):
    (sketch, reference), noise = pictures(2), draw_noise((0, 1), SHAPE, steps=3)
    inputs = {"sketch": sketch, "reference": reference, "start": noise.start, "noise": noise.steps}
    replayed = pipeline.replay(inputs, {"steps": 3, "eta": 1.0, "start": "noise"}, no_progress)
    np.testing.assert_array_equal(replayed, run(pipeline, SAMPLING))
    still = pipeline.replay(inputs | {"noise": None}, {"steps": 3, "eta": 0.0, "start": "noise"}, no_progress)
    np.testing.assert_array_equal(still, run(pipeline, replace(SAMPLING, eta=0.0)))


def test_options_take_the_bundles_defaults(pipeline):
    assert pipeline.sampling(pipeline.options({})) == Sampling(steps=10, eta=1.0, start="noise")
    assert pipeline.sampling(pipeline.options({"eta": 0, "steps": 4})) == Sampling(steps=4, eta=0, start="noise")
    with pytest.raises(TypeError, match="AnimeDiffusion has no option 'mode'; it has steps, eta, start, fit, line_art"):
        pipeline.options({"mode": "full"})


def test_noise_that_is_missing(pipeline):
    with pytest.raises(ValueError, match="3 steps of ddim need 3 noises, got none"):
        pipeline(*pictures(1), SAMPLING, draw_noise((0,), SHAPE, steps=0), no_progress)

import math
from dataclasses import replace

import numpy as np
import pytest

from saishiki.runtime import Bundle, BundleError
from saishiki.runtime.parity import group, measure, measure_image, measure_row, psnr_db, relative_error
from saishiki.runtime.pipelines import AnimeDiffusionPipeline
from tests.bundles import edit_manifest, perturb_weights, rewrite_file

ONES = np.ones((2, 8), np.float32)


def certify(bundle, backend, *, precision="fp32", only_profiles=False):
    seen = []
    certificate = measure(
        bundle,
        backend,
        precisions=(precision,),
        only_profiles=only_profiles,
        versions={"saishiki": "0"},
        on_result=seen.append,
    )
    assert tuple(seen) == (*certificate.rows, *certificate.images)
    return certificate


def failures(certificate):
    rows = {f"{row.module} {row.precision}" for row in certificate.rows if not row.passed}
    return rows | {f"image {image.precision}" for image in certificate.images if not image.passed}


def test_relative_error():
    assert relative_error(ONES, ONES) == 0
    assert relative_error(1.5 * ONES, ONES) == 0.5
    want = np.float32([3, 4])
    assert relative_error(want + np.float32([0, 1]), want) == pytest.approx(0.2)
    assert relative_error(np.float16([1.5]), np.float32([1])) == 0.5
    assert relative_error(ONES, 0 * ONES) == pytest.approx(4e12)


@pytest.mark.parametrize("got", [np.nan * ONES, np.inf * ONES, ONES[:1], ONES[0]])
def test_relative_error_of_what_cannot_be_compared(got):
    assert math.isnan(relative_error(got, ONES))


def test_psnr_db():
    assert psnr_db(ONES, ONES) == 200
    assert psnr_db(ONES + np.float32(0.25), ONES) == pytest.approx(20 * math.log10(8))
    assert psnr_db(ONES + np.float32(0.25), ONES, peak=1.0) == pytest.approx(20 * math.log10(4))
    assert psnr_db(ONES + 1e-12, ONES.astype(np.float64)) == 200


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_psnr_db_of_what_is_not_finite(value):
    assert math.isnan(psnr_db(ONES * np.float32(value), ONES))


def test_group():
    vectors = {"a/in/x": ONES, "a/in/y": 2 * ONES, "ab/in/x": 3 * ONES}
    assert group(vectors, "a/in").keys() == {"x", "y"}
    with pytest.raises(BundleError, match=r"holds no vectors a/out/\.\.\.; export again"):
        group(vectors, "a/out")


@pytest.mark.parametrize("broken", ["first", "second"])
def test_measure_row_fails_on_a_nan_in_any_output(bundle, broken):
    row = replace(bundle.manifest.certificate.rows[0], vectors="m", budget=1e9)
    vectors = {"m/in/x": ONES, "m/out/first": ONES, "m/out/second": ONES}
    measured = measure_row(row, lambda x: {"first": x, "second": x} | {broken: np.nan * x}, vectors)
    assert not measured.passed
    assert math.isnan(measured.error)
    assert math.isnan(measured.max_abs)
    right = measure_row(row, lambda x: {"first": x, "second": x + np.float32(0.5)}, vectors)
    assert (right.passed, right.error, right.max_abs) == (True, 0.5, 0.5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_measure_is_green(bundle, backend, precision):
    certificate = certify(bundle, backend, precision=precision)
    assert certificate.verdict == "passed"
    assert [(row.module, row.precision) for row in certificate.rows] == [
        *[("time_projection", "fp32")] * 3,
        *[("denoiser", precision)] * 2,
    ]
    assert all(0 <= row.error <= row.budget for row in certificate.rows)
    (image,) = certificate.images
    assert len(image.step_errors) == len(image.step_budgets) == 10
    assert image.psnr_db >= image.least_psnr_db >= {"fp32": 80, "fp16": 45}[precision]
    assert image.max_abs_levels <= {"fp32": 0, "fp16": 2}[precision]


def test_measure_holds_one_module_at_a_time(bundle, backend):
    alive, most = set(), []

    class Counted:
        def __init__(self, name, module):
            self.name, self.module = name, module
            alive.add(name)
            most.append(len(alive))

        @property
        def signature(self):
            return self.module.signature

        def __call__(self, **inputs):
            return self.module(**inputs)

        def __del__(self):
            alive.discard(self.name)

    class Counting:
        name = "onnxruntime"

        def load(self, bundle, module, precision):
            return Counted(module, backend.load(bundle, module, precision))

        def run_loop(self, *arguments):
            return backend.run_loop(*arguments)

    assert certify(bundle, Counting()).verdict == "passed"
    assert len(most) >= 4  # both for their rows, and again for the image
    assert max(most) == 1


def test_measure_only_profiles_leaves_out_what_no_engine_holds(bundle, backend):
    def shrink(image):
        return replace(image, sizes={"batch": 1, "height": 16, "width": 16})

    stated = bundle.manifest.certificate
    certificate = replace(stated, images=tuple(map(shrink, stated.images)))
    narrow = replace(bundle, manifest=replace(bundle.manifest, certificate=certificate))
    assert certify(narrow, backend, only_profiles=True).images == ()
    assert len(certify(narrow, backend).images) == 1


def test_measure_fails_where_a_module_was_not_measured(bundle, backend):
    rows = tuple(row for row in bundle.manifest.certificate.rows if row.module != "denoiser")
    certificate = replace(bundle.manifest.certificate, rows=rows, images=())
    partial = replace(bundle, manifest=replace(bundle.manifest, certificate=certificate))
    assert certify(partial, backend).verdict == "failed"


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, True),
        ({"step_budgets": (1.0,) * 4 + (1e-12,) + (1.0,) * 5}, False),
        ({"least_psnr_db": 199.0}, False),
        ({"step_budgets": (1.0,) * 10, "least_psnr_db": 20.0}, True),
    ],
    ids=["as stated", "one step", "psnr", "generous"],
)
def test_an_image_needs_every_step_and_the_psnr(bundle, backend, changes, passes):
    stated = bundle.manifest.certificate.images[0]
    measured = measure_image(replace(stated, **changes), bundle, backend, bundle.parity_vectors())
    assert measured.passed is passes


# What must turn it red. The export's own mistakes are in tests/export.


@pytest.mark.parametrize("shift", [1, -1])
def test_a_shifted_timestep_is_red(bundle, backend, monkeypatch, shift):
    from saishiki.runtime import schedule

    right = schedule.ddim_timesteps

    def shifted(timesteps, steps):
        t, previous = right(timesteps, steps)
        return t + shift, previous

    monkeypatch.setattr(schedule, "ddim_timesteps", shifted)
    certificate = certify(bundle, backend)
    assert certificate.verdict == "failed"
    assert failures(certificate) == {"image fp32"}
    errors, budgets = certificate.images[0].step_errors, certificate.images[0].step_budgets
    assert errors[0] > 5 * budgets[0]  # each step is judged, not the image alone


def test_a_timestep_shifted_for_the_network_alone_is_red(bundle, backend, monkeypatch):
    right = AnimeDiffusionPipeline.time_table
    monkeypatch.setattr(
        AnimeDiffusionPipeline, "time_table", lambda self, tables: right(self, replace(tables, t=tables.t + 1))
    )
    certificate = certify(bundle, backend)
    assert failures(certificate) == {"image fp32"}


def test_swapped_channels_are_red(bundle, backend, monkeypatch):
    right = AnimeDiffusionPipeline.__call__

    def swapped(self, sketch, reference, *others):
        return right(self, sketch, np.ascontiguousarray(reference[:, ::-1]), *others)

    monkeypatch.setattr(AnimeDiffusionPipeline, "__call__", swapped)
    for precision in ("fp32", "fp16"):
        assert failures(certify(bundle, backend, precision=precision)) == {f"image {precision}"}


def test_inverted_sketch_is_red(bundle, backend, monkeypatch):
    right = AnimeDiffusionPipeline.__call__
    monkeypatch.setattr(AnimeDiffusionPipeline, "__call__", lambda self, sketch, *others: right(self, -sketch, *others))
    assert failures(certify(bundle, backend, precision="fp16")) == {"image fp16"}


@pytest.mark.parametrize("name", ["denoiser", "time_projection"])
def test_a_perturbed_weight_is_red(bundle_copy, backend, name):
    rewrite_file(bundle_copy, f"onnx/{name}.fp32.onnx.data", perturb_weights)
    certificate = certify(Bundle.open(bundle_copy), backend)
    assert certificate.verdict == "failed"
    assert f"{name} fp32" in failures(certificate)


def test_a_nan_in_the_weights_is_red(bundle_copy, backend):
    def poison(content):
        return np.full(16, np.nan, np.float32).tobytes() + content[64:]

    rewrite_file(bundle_copy, "onnx/denoiser.fp32.onnx.data", poison)
    certificate = certify(Bundle.open(bundle_copy), backend)
    assert failures(certificate) == {"denoiser fp32", "image fp32"}
    assert math.isnan(certificate.rows[-1].error)
    assert math.isnan(certificate.images[0].psnr_db)
    assert certificate.images[0].max_abs_levels == 255


def test_measure_of_an_unknown_family(bundle_copy, backend):
    edit_manifest(bundle_copy, lambda fields: fields.update(family="sparkle"))
    with pytest.raises(BundleError, match="unknown family 'sparkle'"):
        certify(Bundle.open(bundle_copy), backend)

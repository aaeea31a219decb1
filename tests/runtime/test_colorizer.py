import io
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saishiki.runtime import Bundle, Colorizer, ImageError, Noise
from saishiki.runtime import colorizer as colorizer_module
from saishiki.runtime.backends.protocol import no_progress
from saishiki.runtime.images import normalized_from_uint8
from saishiki.runtime.noise import draw_noise
from saishiki.runtime.pipelines import Sampling
from saishiki.runtime.preparation import prepare
from saishiki.runtime.signature import Profile
from tests.pictures import draw_sketch, paint_reference

SKETCH, REFERENCE = draw_sketch(45, 61), paint_reference(52, 38)
QUICK = {"steps": 2}


def pixels(image):
    return np.asarray(image)


def levels_apart(one, other):
    return int(np.abs(pixels(one).astype(int) - pixels(other).astype(int)).max())


def assert_different(one, other):
    assert np.mean(pixels(one) != pixels(other)) > 0.2


# What goes in and what comes out


def test_one_picture(colorizer):
    image = colorizer(SKETCH, REFERENCE, **QUICK)
    assert isinstance(image, Image.Image)
    assert (image.size, image.mode) == ((61, 45), "RGB")
    assert len(np.unique(pixels(image))) > 10


def test_list_of_pictures_of_different_sizes(colorizer):
    images = colorizer([SKETCH, draw_sketch(33, 20)], [REFERENCE, paint_reference(9, 70)], **QUICK)
    assert [image.size for image in images] == [(61, 45), (20, 33)]


def test_list_of_one_gives_a_list(colorizer):
    (image,) = colorizer([SKETCH], (REFERENCE,), **QUICK)
    assert levels_apart(image, colorizer(SKETCH, REFERENCE, **QUICK)) == 0


def test_one_reference_for_several_sketches(colorizer):
    images = colorizer([SKETCH, draw_sketch(33, 20)], REFERENCE, seed=2, **QUICK)
    want = colorizer([SKETCH, draw_sketch(33, 20)], [REFERENCE, REFERENCE], seed=2, **QUICK)
    assert [levels_apart(one, other) for one, other in zip(images, want, strict=True)] == [0, 0]


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "pil", "grey array"])
def test_every_kind_of_source_gives_the_same(colorizer, tmp_path, kind):
    def source(picture, name):
        file = tmp_path / f"{name}.png"
        Image.fromarray(picture).save(file)
        return {
            "path": file,
            "str": str(file),
            "bytes": file.read_bytes(),
            "pil": Image.open(io.BytesIO(file.read_bytes())),
            "grey array": picture[..., 0] if name == "sketch" else picture,
        }[kind]

    got = colorizer(source(SKETCH, "sketch"), source(REFERENCE, "reference"), **QUICK)
    assert levels_apart(got, colorizer(SKETCH, REFERENCE, **QUICK)) == 0


@pytest.mark.parametrize(("fit", "size"), [("pad", (37, 100)), ("stretch", (37, 100)), ("crop", (37, 36))])
def test_output_has_the_size_of_what_was_coloured(colorizer, fit, size):
    assert colorizer(draw_sketch(100, 37), REFERENCE, fit=fit, **QUICK).size == size


def test_the_reference_matters(colorizer):
    other = paint_reference(52, 38, seed=1)
    assert_different(colorizer(SKETCH, REFERENCE, **QUICK), colorizer(SKETCH, other, **QUICK))


# Against the pipeline itself


def test_the_image_is_what_the_pipeline_computes(colorizer, backend, bundle):
    sketch, reference = draw_sketch(32, 32), paint_reference(32, 32)
    noise = draw_noise((9,), (3, 32, 32), steps=10)
    drawing = normalized_from_uint8(sketch[..., :1]).transpose(2, 0, 1)[None]
    colours = normalized_from_uint8(reference).transpose(2, 0, 1)[None]
    sampling = Sampling(steps=10, eta=1.0, start="noise")
    x = colorizer._pipeline(drawing, np.ascontiguousarray(colours), sampling, noise, no_progress)
    want = ((np.clip(x[0], -1, 1) + 1) / 2 * 255).transpose(1, 2, 0)
    got = pixels(colorizer(sketch, reference, seed=9))
    assert np.abs(got - want).max() <= 1  # truncation
    np.testing.assert_array_equal(got, pixels(colorizer(sketch, reference, seed=9, steps=10, eta=1.0, start="noise")))


# Noise and seeds


def test_seeds_reproduce(colorizer):
    first = colorizer(SKETCH, REFERENCE, seed=3, **QUICK)
    assert levels_apart(first, colorizer(SKETCH, REFERENCE, seed=3, **QUICK)) == 0
    assert levels_apart(first, colorizer(SKETCH, REFERENCE, seed=np.int64(3), **QUICK)) == 0
    assert_different(first, colorizer(SKETCH, REFERENCE, seed=4, **QUICK))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_image_alone_and_in_a_batch(colorizer, eta):
    batch = colorizer([SKETCH, SKETCH], [REFERENCE, REFERENCE], seed=5, eta=eta, **QUICK)
    alone = [colorizer(SKETCH, REFERENCE, seed=seed, eta=eta, **QUICK) for seed in (5, 6)]
    for one, other in zip(batch, alone, strict=True):
        assert levels_apart(one, other) <= 1  # the kernels of another batch size may round otherwise
    assert_different(*batch)


def test_given_seeds(colorizer):
    batch = colorizer([SKETCH, SKETCH], [REFERENCE, REFERENCE], seed=[8, 2], **QUICK)
    assert levels_apart(batch[0], colorizer(SKETCH, REFERENCE, seed=8, **QUICK)) <= 1
    assert levels_apart(batch[1], colorizer(SKETCH, REFERENCE, seed=2, **QUICK)) <= 1


def test_eta_adds_noise(colorizer):
    images = [colorizer(SKETCH, REFERENCE, steps=5, eta=eta, seed=1) for eta in (0.0, 0.5, 1.0)]
    assert_different(images[0], images[1])
    assert_different(images[1], images[2])
    published = colorizer(SKETCH, REFERENCE, steps=5, seed=1)
    assert levels_apart(published, images[2]) == 0


def test_given_noise(colorizer):
    drawn = draw_noise((7,), (3, 32, 32), steps=2)
    want = colorizer(SKETCH, REFERENCE, seed=7, **QUICK)
    assert levels_apart(colorizer(SKETCH, REFERENCE, noise=drawn, **QUICK), want) == 0
    assert levels_apart(colorizer(SKETCH, REFERENCE, seed=7, noise=drawn.start, **QUICK), want) == 0
    assert_different(colorizer(SKETCH, REFERENCE, seed=7, noise=-drawn.start, **QUICK), want)
    other_steps = Noise(drawn.start, -drawn.steps)
    assert_different(colorizer(SKETCH, REFERENCE, noise=other_steps, **QUICK), want)


def test_given_noise_over_several_parts(colorizer):
    noise = draw_noise((1, 2, 3), (3, 32, 32), steps=2)
    want = colorizer([SKETCH] * 3, [REFERENCE] * 3, seed=1, **QUICK)
    for given in (noise, noise.start):
        got = colorizer([SKETCH] * 3, [REFERENCE] * 3, seed=1, noise=given, **QUICK)
        assert [levels_apart(one, other) for one, other in zip(got, want, strict=True)] == [0, 0, 0]


def gaussian(*shape, dtype=np.float32, value=None):
    noise = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    if value is not None:
        noise.flat[5] = value
    return noise


START = (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("noise", "eta", "message"),
    [
        (gaussian(1, 3, 32, 31), 1.0, r"start noise: expected \(1, 3, 32, 32\), got \(1, 3, 32, 31\)"),
        (gaussian(3, 32, 32), 1.0, r"start noise: expected \(1, 3, 32, 32\), got \(3, 32, 32\)"),
        (gaussian(*START, dtype=np.float64), 1.0, "start noise: expected float32, got float64"),
        (gaussian(*START).tolist(), 1.0, "start noise: expected float32, got list"),
        (gaussian(*START, value=np.nan), 1.0, "start noise: expected finite values, got NaN or infinity"),
        (gaussian(*START, value=-np.inf), 0.0, "start noise: expected finite values, got NaN or infinity"),
        (Noise(gaussian(*START), None), 1.0, r"step noise: expected \(2, 1, 3, 32, 32\), got None"),
        (
            Noise(gaussian(*START), gaussian(2, *START)),
            0.0,
            "step noise: expected None, since no step of this run adds noise, got",
        ),
        (Noise(gaussian(*START), gaussian(3, *START)), 1.0, r"step noise: expected \(2, 1, 3, 32, 32\), got \(3, 1,"),
        (Noise(gaussian(*START), gaussian(2, *START, value=np.nan)), 1.0, "step noise: expected finite values"),
    ],
)
def test_given_noise_is_refused(colorizer, noise, eta, message):
    with pytest.raises(ValueError, match=message):
        colorizer(SKETCH, REFERENCE, noise=noise, eta=eta, **QUICK)


# Ways to start, lines, distortion


def test_start_modes_differ(colorizer):
    images = {
        start: colorizer(SKETCH, REFERENCE, start=start, steps=3, eta=0.0)
        for start in ("noise", "reference-walk", "noised-reference")
    }
    assert_different(images["noise"], images["reference-walk"])
    assert_different(images["noise"], images["noised-reference"])
    assert_different(images["reference-walk"], images["noised-reference"])
    again = colorizer(SKETCH, REFERENCE, start="reference-walk", steps=3, eta=0.0)
    assert levels_apart(images["reference-walk"], again) == 0


def test_distorted_reference_reproduces(colorizer):
    def run(seed, distort):
        return colorizer(SKETCH, REFERENCE, seed=seed, distort_reference=distort, **QUICK)

    assert levels_apart(run(1, True), run(1, True)) == 0
    assert_different(run(1, True), run(1, False))


def prepared(sketch, **options):
    return prepare(sketch, REFERENCE, height=32, width=32, **options)


def test_line_art_modes():
    photograph = paint_reference(45, 61)
    as_is, xdog, auto = (prepared(photograph, line_art=mode).sketch for mode in ("as-is", "xdog", "auto"))
    np.testing.assert_array_equal(auto, xdog)
    assert np.abs(as_is - xdog).max() > 0.5
    pencil = np.maximum(SKETCH, 120)
    as_is, xdog, auto = (prepared(pencil, line_art=mode).sketch for mode in ("as-is", "xdog", "auto"))
    np.testing.assert_array_equal(auto, as_is)
    assert np.abs(as_is - xdog).max() > 0.5


def test_prepare_pads_with_paper_and_edges():
    item = prepared(np.zeros((16, 32, 3), np.uint8), line_art="as-is")
    assert (item.sketch.shape, item.reference.shape) == ((1, 32, 32), (3, 32, 32))
    assert item.sketch.dtype == item.reference.dtype == np.float32
    np.testing.assert_array_equal(item.sketch[0, :8], 1)  # paper above
    np.testing.assert_array_equal(item.sketch[0, 8:24], -1)
    np.testing.assert_array_equal(item.reference[:, :, 0], item.reference[:, :, 3])  # the edge, repeated
    assert -1 <= item.reference.min() < item.reference.max() <= 1


def test_prepare_keeps_the_order_of_channels():
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    item = prepare(SKETCH, red, height=32, width=32)
    np.testing.assert_array_equal(item.reference.mean(axis=(1, 2)), [1, -1, -1])


# Sizes and splitting


def test_size(colorizer):
    tuned = colorizer(SKETCH, REFERENCE, **QUICK)
    for size in (32, (32, 32), [32, 32], np.int64(32)):
        assert levels_apart(colorizer(SKETCH, REFERENCE, size=size, **QUICK), tuned) == 0


def test_size_of_a_wider_profile(bundle):
    point = {"batch": 1, "steps": 10}
    wide = Profile(*(point | {"height": 16, "width": width} for width in (16, 32, 48)))
    manifest = replace(bundle.manifest, profiles=(*bundle.manifest.profiles, wide))
    with Colorizer.load(Bundle(bundle.path, manifest), backend="onnxruntime") as colorizer:
        image = colorizer(SKETCH, REFERENCE, size=(16, 40), **QUICK)
        assert image.size == (61, 45)
        with pytest.raises(
            ValueError, match=r"size 40x16 is in none of the bundle's profiles \(.*; .*width 16..32..48"
        ):
            colorizer(SKETCH, REFERENCE, size=(40, 16), **QUICK)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            64,
            r"size 64x64 is in none of the bundle's profiles \(batch 1..1..2, height 32, width 32.*\); export it with",
        ),
        (33, "size: height must be a positive multiple of 2, got 33; the nearest: 32, 34"),
        ((32, 31), "size: width must be a positive multiple of 2, got 31"),
        (0, "size: height must be a positive multiple of 2, got 0"),
        (-32, "size: height must be a positive multiple of 2, got -32"),
    ],
)
def test_size_is_refused(colorizer, size, message):
    with pytest.raises(ValueError, match=message):
        colorizer(SKETCH, REFERENCE, size=size, **QUICK)


@pytest.mark.parametrize("size", ["32", 32.0, (32,), (32, 32, 3), (32, "32")])
def test_size_of_the_wrong_kind(colorizer, size):
    with pytest.raises(TypeError, match=r"size must be a whole number or \(height, width\), got"):
        colorizer(SKETCH, REFERENCE, size=size, **QUICK)


def test_a_large_batch_is_split(colorizer, monkeypatch):
    assert colorizer.max_batch == 2
    ran = []
    run = Colorizer._run

    def counted(self, work, part, noise, on_step):
        ran.append((len(work.prepared[part]), noise.start.shape[0], noise.steps.shape[1]))
        return run(self, work, part, noise, on_step)

    monkeypatch.setattr(Colorizer, "_run", counted)
    steps = []
    images = colorizer(
        [SKETCH] * 5, [REFERENCE] * 5, seed=10, progress=lambda done, total: steps.append((done, total)), **QUICK
    )
    assert ran == [(2, 2, 2), (2, 2, 2), (1, 1, 1)]
    assert steps == [(done, 6) for done in range(1, 7)]
    assert levels_apart(images[4], colorizer(SKETCH, REFERENCE, seed=14, **QUICK)) == 0
    assert levels_apart(images[3], colorizer(SKETCH, REFERENCE, seed=13, **QUICK)) <= 1


# Progress and cancellation


def test_progress(colorizer):
    calls = []
    colorizer(SKETCH, REFERENCE, steps=4, progress=lambda *counts: calls.append(counts))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_without_progress_a_backend_need_not_stop(colorizer, monkeypatch):
    seen = []
    run = Colorizer._run
    monkeypatch.setattr(Colorizer, "_run", lambda self, *args: seen.append(args[-1]) or run(self, *args))
    colorizer(SKETCH, REFERENCE, **QUICK)
    colorizer(SKETCH, REFERENCE, cancel=threading.Event(), **QUICK)
    assert seen[0] is no_progress
    assert seen[1] is not no_progress


def test_an_error_in_progress_ends_the_run(colorizer):
    def fail(done, total):
        raise RuntimeError(f"at {done}")

    with pytest.raises(RuntimeError, match="at 1"):
        colorizer(SKETCH, REFERENCE, progress=fail, **QUICK)


def test_cancel_in_the_progress_callback(colorizer):
    cancel, calls = threading.Event(), []

    def progress(done, total):
        calls.append(done)
        if done == 3:
            cancel.set()

    with pytest.raises(CancelledError, match="cancelled after 3 of 10 steps"):
        colorizer(SKETCH, REFERENCE, progress=progress, cancel=cancel)
    assert calls == [1, 2, 3]
    cancel.clear()
    assert colorizer(SKETCH, REFERENCE, cancel=cancel, **QUICK).size == (61, 45)


def test_cancel_before_the_first_step(colorizer):
    cancel, calls = threading.Event(), []
    cancel.set()
    with pytest.raises(CancelledError, match="cancelled after 0 of 10 steps"):
        colorizer(SKETCH, REFERENCE, cancel=cancel, progress=lambda *counts: calls.append(counts))
    assert calls == []


def test_cancel_from_another_thread(colorizer):
    cancel, started = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(colorizer, SKETCH, REFERENCE, steps=999, cancel=cancel, progress=lambda *_: started.set())
        assert started.wait(60)
        cancel.set()
        with pytest.raises(CancelledError, match=r"cancelled after \d+ of 999 steps"):
            future.result(60)


# Precision, threads, life


def test_precisions_are_close(tiny_bundle, colorizer):
    assert colorizer.precision == "fp32"
    with Colorizer.load(tiny_bundle, backend="onnxruntime", precision="fp16") as half:
        assert (half.precision, half.backend.name) == ("fp16", "onnxruntime")
        image = half(SKETCH, REFERENCE)
    full = colorizer(SKETCH, REFERENCE)
    assert 0 < np.abs(pixels(image).astype(float) - pixels(full)).mean() < 1


def test_load_chooses_what_works_here(tiny_bundle):
    with Colorizer.load(str(tiny_bundle), device="cpu") as colorizer:
        assert (colorizer.backend.name, colorizer.precision) == ("onnxruntime", "fp32")
        assert colorizer.manifest is colorizer.bundle.manifest


def test_threads_give_the_same_pictures(colorizer):
    jobs = [(draw_sketch(40 + i, 50, seed=i), paint_reference(30, 30, seed=i), 2 + i % 3, i) for i in range(8)]

    def run(job):
        sketch, reference, steps, seed = job
        return pixels(colorizer(sketch, reference, steps=steps, seed=seed))

    colorizer._pipeline._time_tables.clear()  # so that the threads meet there
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, jobs))
    for got, job in zip(together, jobs, strict=True):
        np.testing.assert_array_equal(got, run(job))


def test_a_failed_load_closes_the_backend(bundle, backend, monkeypatch):
    class Closing:
        name, default_precision, closed = "onnxruntime", "fp32", False

        def close(self):
            self.closed = True

    opened = Closing()
    monkeypatch.setattr(colorizer_module, "open_backend", lambda *_: opened)
    with pytest.raises(AttributeError, match="load"):
        Colorizer.load(bundle)
    assert opened.closed


def test_leaving_the_context_closes_the_backend(colorizer, bundle):
    class Closing:
        closed = 0

        def close(self):
            self.closed += 1

    closing = Closing()
    with pytest.raises(KeyError), Colorizer(bundle, closing, colorizer._pipeline, "fp32"):
        raise KeyError
    assert closing.closed == 1


# Wrong arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be between 1 and 999, got -1"),
        ({"steps": 0}, "steps must be between 1 and 999, got 0"),
        ({"steps": 1000}, "steps must be between 1 and 999, got 1000"),
        ({"steps": 10**9}, "steps must be between 1 and 999, got 1000000000"),
        ({"eta": float("nan")}, r"eta must be between 0 .* and 1 .*, got nan"),
        ({"eta": float("inf")}, r"eta must be between 0 .* and 1 .*, got inf"),
        ({"eta": 2}, r"eta must be between 0 .* and 1 .*, got 2"),
        ({"eta": -0.5}, r"eta must be between 0 .* and 1 .*, got -0.5"),
        ({"start": "middle"}, "unknown start 'middle'; expected one of noise, reference-walk, noised-reference"),
        ({"fit": "squeeze"}, "squeeze"),
        ({"line_art": "canny"}, "unknown line_art 'canny'; expected auto, as-is or xdog"),
        ({"seed": -1}, "seeds must not be negative, got -1"),
        ({"seed": [1, 2]}, "expected one seed or 1 of them, one per image; got 2"),
    ],
)
def test_wrong_arguments(colorizer, options, message):
    with pytest.raises(ValueError, match=message):
        colorizer(SKETCH, REFERENCE, **options)


@pytest.mark.parametrize("options", [{"steps": 2.5}, {"steps": "10"}, {"seed": 1.5}, {"stepz": 3}])
def test_arguments_of_the_wrong_kind(colorizer, options):
    with pytest.raises(TypeError):
        colorizer(SKETCH, REFERENCE, **options)


def test_an_option_of_another_family(colorizer):
    message = "AnimeDiffusion has no option 'merge_scale'; it has steps, eta, start, fit, line_art, distort_reference"
    with pytest.raises(TypeError, match=message):
        colorizer(SKETCH, REFERENCE, merge_scale=0.5)


def test_bad_arguments_are_told_before_any_work(colorizer):
    with pytest.raises(ValueError, match="steps must be between"):
        colorizer(Path("missing.png"), Path("missing.png"), steps=-1)


@pytest.mark.parametrize(
    ("sketch", "reference", "message"),
    [
        ([], [], "expected one reference for every sketch, got 0 and 0"),
        ([SKETCH], [], "expected one reference for every sketch, got 1 and 0"),
        ([SKETCH], [REFERENCE, REFERENCE], "expected one reference for every sketch, got 1 and 2"),
        (
            SKETCH,
            [REFERENCE],
            "sketch and reference must be one picture each, or a list each; got a picture and a list",
        ),
        ("ab", ["a", "b"], "sketch and reference must be one picture each, or a list each"),
        ([], REFERENCE, "expected one reference for every sketch, got 0 and 0"),
        (SKETCH, None, "AnimeDiffusion colours after a reference; give one for every sketch"),
    ],
)
def test_mismatched_pictures(colorizer, sketch, reference, message):
    with pytest.raises(ValueError, match=message):
        colorizer(sketch, reference)


@pytest.mark.parametrize(
    ("sketch", "kind", "message"),
    [
        (b"no picture", ImageError, "10 bytes is not a readable picture"),
        (np.zeros((4, 4, 3), np.uint8), ImageError, "at least 8 px a side"),
        (Path("missing.png"), FileNotFoundError, "missing.png"),
        (None, TypeError, "expected a path, bytes, a Pillow image or an array, got NoneType"),
    ],
)
def test_pictures_that_cannot_be_used(colorizer, sketch, kind, message):
    with pytest.raises(kind, match=message):
        colorizer(sketch, REFERENCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "directml"}, "unknown backend 'directml'; expected auto or one of tensorrt-rtx, tensorrt, onnxr"),
        ({"device": "tpu"}, "unknown device 'tpu'; expected cpu, cuda or cuda:N"),
        ({"precision": "fp8"}, "unknown precision 'fp8'; expected fp32 or fp16"),
        (
            {"backend": "tensorrt-rtx", "device": "cpu"},
            "tensorrt-rtx needs a GPU; use device cuda, or the backend onnx",
        ),
    ],
)
def test_load_with_wrong_arguments(bundle, options, message):
    with pytest.raises(ValueError, match=message):
        Colorizer.load(bundle, **options)


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN or infinite"), (0.5, r"output image 0 is \[191, 191, 191\]")]
)
def test_a_broken_engine_gives_no_picture(colorizer, monkeypatch, value, message):
    monkeypatch.setattr(Colorizer, "_run", lambda *_: np.full((1, 3, 32, 32), value, np.float32))
    with pytest.raises(ImageError, match=message):
        colorizer(SKETCH, REFERENCE)

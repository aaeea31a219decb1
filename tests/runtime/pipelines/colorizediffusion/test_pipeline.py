"""The pipeline on stand-ins: what reaches which module, what is kept, what is refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from saishiki.runtime.colorizer import Colorizer
from saishiki.runtime.errors import BundleError, ImageError
from saishiki.runtime.noise import Noise
from saishiki.runtime.pipelines.colorizediffusion import MODES, ColorizeDiffusionPipeline
from saishiki.runtime.samplers import SAMPLERS
from tests.pictures import draw_sketch, paint_reference
from tests.runtime.pipelines.colorizediffusion.stand_ins import (
    LATENT,
    TOKENS,
    WIDTH,
    FakeBackend,
    bundle_of,
    hints,
    maps,
    rows_of,
    signature,
    spec,
)

SKETCH, REFERENCE, BACKGROUND = draw_sketch(60, 100), paint_reference(52, 38), paint_reference(40, 70, seed=3)
SKETCH_MASK, REFERENCE_MASK = np.zeros((60, 100), np.uint8), np.zeros((52, 38), np.uint8)
SKETCH_MASK[10:50, 20:60] = REFERENCE_MASK[5:30, 5:30] = 255
MASKS = {"sketch_mask": SKETCH_MASK, "reference_mask": REFERENCE_MASK}
QUICK = {"steps": 2}
EVERY_MODE = [(generation, mode) for generation, modes in MODES.items() for mode in modes]
SCALES = {"none": (1, 1), "reference": (4, 1), "sketch": (1, 2), "both": (4, 2)}


def colorizer_of(generation="v2", **bundle):
    made, backend = bundle_of(generation, **bundle), FakeBackend()
    return Colorizer(made, backend, ColorizeDiffusionPipeline.load(made, backend, "fp32"), "fp32")


def pixels(image):
    return np.asarray(image).astype(int)


def calls_of(colorizer, *arguments, **options):
    """How often each module ran in one call."""
    before = colorizer.backend.calls.copy()
    colorizer(*arguments, **options)
    return dict(colorizer.backend.calls - before)


# Modes and guidance


@pytest.mark.parametrize(("generation", "mode"), EVERY_MODE)
@pytest.mark.parametrize("guidance", SCALES)
def test_every_mode_and_guidance(generation, mode, guidance):
    colorizer = colorizer_of(generation)
    scale, sketch_scale = SCALES[guidance]
    image = colorizer(
        SKETCH, REFERENCE, mode=mode, guidance_scale=scale, sketch_guidance_scale=sketch_scale, **MASKS, **QUICK
    )
    assert image.size == (128, 64)
    (denoiser,) = (name for name in colorizer.backend.calls if name.startswith("denoiser_"))
    assert denoiser.endswith(f"_{guidance}")
    assert colorizer.backend.calls[denoiser] == 2


def test_vanilla_loads_no_module_of_the_background():
    colorizer = colorizer_of()
    colorizer(SKETCH, REFERENCE, **QUICK)
    assert sorted(colorizer.backend.loaded) == [
        "context_projector",
        "denoiser_vanilla_reference",
        "image_encoder",
        "sketch_encoder",
        "time_projection",
        "vae_decoder",
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(sampler):
    colorizer, reports = colorizer_of(), []
    image = colorizer(SKETCH, REFERENCE, sampler=sampler, steps=4, progress=lambda *counts: reports.append(counts))
    assert image.size == (128, 64)
    assert reports[-1][0] == reports[-1][1] == len(reports)


def test_merging_takes_another_denoiser():
    colorizer = colorizer_of()
    for merge_scale, name in (
        (0.0, "denoiser_split_fg_bg_warp_reference"),
        (0.4, "denoiser_split_fg_bg_warp_merge_re"),
    ):
        calls = calls_of(colorizer, SKETCH, REFERENCE, mode="full", merge_scale=merge_scale, **MASKS, **QUICK)
        assert any(called.startswith(name) for called in calls)
    assert colorizer.backend.last["denoiser_split_fg_bg_warp_merge_reference"]["merge_scale"] == np.float32(0.4)


# Which option reaches what


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 7},
        {"reference_strength": 0.5},
        {"level_strengths": (1, 0.5, 1)},
        {"block_strengths": (0.5,) * 16},
        {"foreground_strength": 0.5},
        {"background_strength": 0.5},
        {"background_factor": 0.5},
        {"merge_scale": 0.5},
        {"sketch_threshold": 0.9999},
        {"reference_threshold": 0.0},
        {"control_scale": 0.5},
        {"guidance_end": 0.4},
        {"sampler": "Euler"},
        {"scheduler": "Karras"},
        {"preprocess": "none"},
        {"padding_scale": 1.5},
        {"background": BACKGROUND},
        {"reference_seed": 5},
        {"sketch_mask": 255 - SKETCH_MASK},
        {"reference_mask": 255 - REFERENCE_MASK},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_acts(options):
    colorizer = colorizer_of()
    given = {"mode": "full", **MASKS, "steps": 4}
    plain, changed = colorizer(SKETCH, REFERENCE, **given), colorizer(SKETCH, REFERENCE, **{**given, **options})
    assert np.abs(pixels(plain) - pixels(changed)).max() > 0


@pytest.mark.parametrize(("generation", "acts"), [("v1", False), ("v1.5", False), ("v2", True)])
def test_region_strengths_are_published_or_named(generation, acts):
    colorizer = colorizer_of(generation)
    scales = {"mode": "background", "foreground_strength": 0.5, "background_strength": 0.25, **MASKS, **QUICK}
    denoiser = (
        f"denoiser_split{'' if generation == 'v1' else '_bg' if generation == 'v1.5' else '_fg_bg_warp'}_reference"
    )
    values = {}
    for how in ("published", "named"):
        colorizer(SKETCH, REFERENCE, region_strengths=how, **scales)
        values[how] = colorizer.backend.last[denoiser]["value_06"]
    assert (np.abs(values["published"] - values["named"]).max() == 0) == acts
    whole = colorizer_of(generation)
    whole(SKETCH, REFERENCE, mode="background", **MASKS, **QUICK)
    plain = whole.backend.last[denoiser]["value_06"]
    scale = np.repeat(np.float32([0.5, 0.25]), 256)[:, None]
    np.testing.assert_allclose(values["named"][0], plain[0] * scale, rtol=1e-6)


def test_strengths_scale_values_and_not_keys():
    colorizer = colorizer_of()
    colorizer(SKETCH, REFERENCE, **QUICK)
    plain = colorizer.backend.last["denoiser_vanilla_reference"]
    colorizer(SKETCH, REFERENCE, reference_strength=0.5, level_strengths=(1, 0.5, 1), **QUICK)
    scaled = colorizer.backend.last["denoiser_vanilla_reference"]
    want = [0.5, 0.5, 0.25, 0.25, 0.5, 0.5, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 1, 1, 1]
    for block, strength in enumerate(want):
        np.testing.assert_array_equal(scaled[f"key_{block:02}"], plain[f"key_{block:02}"])
        np.testing.assert_array_equal(scaled[f"value_{block:02}"], plain[f"value_{block:02}"] * np.float32(strength))


def test_guidance_windows_close_evaluations():
    colorizer = colorizer_of("v1")
    colorizer(SKETCH, REFERENCE, guidance_start=0.3, guidance_end=0.7, steps=10)
    loop = colorizer.backend.loops[-1]
    shares = 1 - loop.solver.timesteps / 999
    assert loop.phases == tuple((shares < 0.3) | (shares > 0.7))
    open_, closed = loop.constants
    assert all(not closed[name].any() for name in closed if name.startswith("value_"))
    assert all(closed[name] is open_[name] for name in closed if not name.startswith("value_"))
    colorizer(SKETCH, REFERENCE, no_guidance_start=0.5, no_guidance_end=0.6, windows="published", steps=10)
    assert colorizer.backend.loops[-1].phases == tuple(shares >= 0.5)
    colorizer(SKETCH, REFERENCE, steps=10)
    assert colorizer.backend.loops[-1].phases == ()


@pytest.mark.parametrize("generation", ["v1.5", "v2"])
def test_published_windows_are_ignored(generation):
    colorizer = colorizer_of(generation)
    colorizer(SKETCH, REFERENCE, guidance_start=0.3, windows="published", **QUICK)
    assert colorizer.backend.loops[-1].phases == ()


# The reference cache


def test_the_next_frame_skips_the_encoders():
    colorizer = colorizer_of()
    options = {"mode": "full", **MASKS, **QUICK}
    first = calls_of(colorizer, SKETCH, REFERENCE, **options)
    assert first["image_encoder"] == 2  # the reference, and its background
    assert first["vae_encoder"] == 2
    encoders = {"image_encoder", "vae_encoder", "background_encoder", "style_encoder", "warp_projector"}
    encoders |= {"context_projector_fg", "context_projector_bg", "style_projector", "time_projection"}
    assert encoders <= first.keys()
    frame = draw_sketch(60, 100, seed=8)
    second = calls_of(colorizer, frame, REFERENCE.copy(), **options)
    assert second == {"sketch_encoder": 1, "denoiser_split_fg_bg_warp_reference": 2, "vae_decoder": 1}
    fresh = colorizer_of()(frame, REFERENCE, **options)
    np.testing.assert_array_equal(pixels(colorizer(frame, REFERENCE, **options)), pixels(fresh))


def test_a_colorizer_lets_its_cache_be_limited():
    colorizer = colorizer_of()
    colorizer.reference_cache.limit(0)
    calls = [calls_of(colorizer, SKETCH, REFERENCE, **QUICK) for _ in range(2)]
    assert calls[0] == calls[1]
    assert calls[0]["image_encoder"] == 1


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({"background_factor": 0.5}, {"warp_projector"}),
        ({"foreground_strength": 0.5}, set()),
        ({"reference_seed": 1}, {"vae_encoder", "background_encoder", "warp_projector", "style_encoder"}),
        ({"reference_mask": 255 - REFERENCE_MASK}, {"image_encoder", "vae_encoder", "background_encoder"}),
        ({"reference_threshold": 0.25}, {"image_encoder", "vae_encoder", "background_encoder"}),
        ({"padding_scale": 2.0}, {"image_encoder", "vae_encoder", "background_encoder", "style_encoder"}),
        ({"size": (128, 64)}, {"vae_encoder", "background_encoder", "style_encoder", "sketch_encoder"}),
        ({"steps": 3}, {"time_projection", "style_projector"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_acts_on_the_reference_runs_its_encoders_again(options, again):
    colorizer = colorizer_of()
    given = {"mode": "full", **MASKS, **QUICK}
    colorizer(SKETCH, REFERENCE, **given)
    calls = calls_of(colorizer, SKETCH, REFERENCE, **{**given, **options})
    assert again <= calls.keys()
    if not again:
        assert calls == {"denoiser_split_fg_bg_warp_reference": 2, "vae_decoder": 1}
    want = colorizer_of()(SKETCH, REFERENCE, **{**given, **options})
    np.testing.assert_array_equal(pixels(colorizer(SKETCH, REFERENCE, **{**given, **options})), pixels(want))


def test_calls_depend_on_their_arguments_alone():
    mixed = colorizer_of()
    plans = [
        {"mode": mode, "guidance_scale": scale, "merge_scale": merge, "reference_seed": seed, **MASKS, **QUICK}
        for mode, scale, merge, seed in zip(
            ("vanilla", "full", "style", "vanilla", "background", "foreground", "vanilla", "full"),
            (4, 1, 4, 1, 4, 4, 4, 4),
            (0, 0.5, 0, 0, 0, 0.5, 0, 0),
            (0, 0, 1, 0, 1, 0, 0, 1),
            strict=True,
        )
    ]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda plan: pixels(mixed(SKETCH, REFERENCE, **plan)), plans * 2))
    for plan, got in zip(plans * 2, together, strict=True):
        np.testing.assert_array_equal(got, pixels(colorizer_of()(SKETCH, REFERENCE, **plan)))


# Batches, sizes, noise


def test_several_sketches_and_references():
    colorizer = colorizer_of()
    sketches, references = [SKETCH, draw_sketch(60, 100, seed=2)], [REFERENCE, paint_reference(52, 38, seed=5)]
    options = {"mode": "full", **MASKS, **QUICK}
    batch = colorizer(sketches, references, seed=3, **options)
    for i in range(2):
        alone = colorizer(sketches[i], references[i], seed=3 + i, **options)
        # A stand-in's answer depends on its whole batch, so only what it was given is compared.
        assert alone.size == batch[i].size
    one, both = (loop.constants[0] for loop in colorizer.backend.loops[-1:-4:-2])
    for name in one:
        np.testing.assert_allclose(both[name][1], one[name][0], atol=1e-6, err_msg=name)


def test_one_reference_for_several_sketches_is_encoded_once():
    colorizer = colorizer_of()
    calls = calls_of(colorizer, [SKETCH, draw_sketch(60, 100, seed=2)], REFERENCE, **QUICK)
    assert (calls["image_encoder"], calls["context_projector"], calls["sketch_encoder"]) == (1, 1, 2)
    assert calls["denoiser_vanilla_reference"] == 2


def test_without_a_reference_and_without_a_sketch():
    colorizer = colorizer_of()
    colorizer(None, None, **QUICK)
    assert not colorizer.backend.last["context_projector"]["context"].any()
    assert (colorizer.backend.last["sketch_encoder"]["sketch"] == -1).all()
    assert "image_encoder" not in colorizer.backend.calls


@pytest.mark.parametrize("size", [64, (128, 64), (192, 192)])
def test_any_multiple_of_64(size):
    height, width = (size, size) if isinstance(size, int) else size
    assert colorizer_of()(SKETCH, REFERENCE, size=size, **QUICK).size == (width, height)


def test_crop_gives_back_the_part_of_the_sketch():
    whole = colorizer_of()(SKETCH, REFERENCE, **QUICK)
    cropped = colorizer_of()(SKETCH, REFERENCE, crop=True, **QUICK)
    assert cropped.size == (106, 64)
    np.testing.assert_array_equal(pixels(cropped), pixels(whole)[:, 11:117])


def test_given_noise():
    colorizer = colorizer_of()
    rng = np.random.default_rng(0)
    start, steps = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 4, 8, 16), (2, 1, 4, 8, 16)))
    options = {"sampler": "Euler a", "steps": 3}
    needed = colorizer(SKETCH, REFERENCE, noise=Noise(start, steps), **options)
    np.testing.assert_array_equal(colorizer.backend.loops[-1].noise, steps)
    start_alone = colorizer(SKETCH, REFERENCE, noise=start, seed=4, **options)
    assert np.abs(pixels(needed) - pixels(start_alone)).max() > 0


def test_given_reference_noise():
    noise = np.random.default_rng(0).standard_normal((2, 1, 4, 8, 16)).astype(np.float32)
    options = {"mode": "full", **MASKS, **QUICK}
    given = colorizer_of()
    given(SKETCH, REFERENCE, reference_noise=list(noise), **options)
    moments = {}
    for name in ("background_encoder", "style_encoder"):
        moments[name] = given.backend.last[name]["z"]
    other = colorizer_of()
    other(SKETCH, REFERENCE, reference_noise=list(0 * noise), **options)
    for name, draw in (("style_encoder", 0), ("background_encoder", 1)):
        difference = moments[name] - other.backend.last[name]["z"]
        ratio = difference / noise[draw]
        assert (ratio > 0).all()  # the deviation, scaled: z is mean plus deviation times that draw
    with pytest.raises(ValueError, match="reference_noise: the run draws more than the 1 that were given"):
        colorizer_of()(SKETCH, REFERENCE, reference_noise=list(noise[:1]), **options)
    with pytest.raises(
        ValueError, match=r"reference_noise 0: expected floats \(1, 4, 8, 16\), got float32 \(1, 4, 8, 8\)"
    ):
        colorizer_of()(SKETCH, REFERENCE, reference_noise=list(noise[..., :8]), **options)


# Denoisers without hoists


def unhoisted(generation, variant):
    """A denoiser that computes everything itself."""
    inputs = [spec("x", *LATENT), spec("t", "batch"), spec("context", "batch", "tokens", WIDTH)]
    inputs += [spec("strengths", "16"), *hints("2*batch" if variant.guidance in ("sketch", "both") else "batch")]
    if variant.split:
        inputs += [spec("mask", "batch", "1", *LATENT[2:]), spec("threshold", "1")]
        inputs += [spec("fg_scale", "1"), spec("bg_scale", "1")]
    if generation == "v2":
        inputs += [spec("style", "batch", "5"), spec("styled", "1")]
    inputs += maps() if variant.warp else []
    inputs += [spec("merge_scale", "1")] if variant.merge else []
    return signature(inputs, [spec("prediction", *rows_of(variant))])


@pytest.mark.parametrize(("generation", "mode"), EVERY_MODE)
def test_a_denoiser_without_hoists(generation, mode):
    colorizer = colorizer_of(generation, denoisers=unhoisted)
    options = {"mode": mode, "foreground_strength": 0.5, "reference_strength": 0.5, "region_strengths": "named"}
    colorizer(SKETCH, REFERENCE, **options, **MASKS, **QUICK)
    (given,) = (inputs for name, inputs in colorizer.backend.last.items() if name.startswith("denoiser_"))
    np.testing.assert_array_equal(given["strengths"][[0, 6, 15]], np.float32([0.5, 1, 1]))
    assert given["t"].shape == (1,)
    halves = 1 if mode in ("vanilla", "style") else 4 if mode == "foreground+background" else 2
    assert given["context"].shape == (1, 256 * halves, 8)
    if halves > 1:
        assert (given["fg_scale"], given["bg_scale"], given["threshold"]) == (0.5, 1, np.float32(0.05))
        assert given["mask"].max() > 0.9
    if generation == "v2":
        assert given["styled"] == (mode in ("style", "full"))
    assert "context_projector" not in colorizer.backend.calls
    colorizer(SKETCH, REFERENCE, guidance_end=0.4, **options, **MASKS, **QUICK)
    assert not colorizer.backend.loops[-1].constants[1]["context"].any()


def test_a_denoiser_from_the_future():
    def futuristic(generation, variant):
        return signature([spec("x", *LATENT), spec("mood", "batch")], [spec("prediction", *rows_of(variant))])

    with pytest.raises(BundleError, match="takes an input 'mood', which this Saishiki does not know; upgrade"):
        colorizer_of(denoisers=futuristic)(SKETCH, REFERENCE, **QUICK)


def test_regions_decided_by_the_mask_reach_every_level():
    colorizer = colorizer_of()
    colorizer(SKETCH, REFERENCE, mode="background", **MASKS, **QUICK)
    given = colorizer.backend.last["denoiser_split_fg_bg_warp_reference"]
    for level, area in TOKENS.items():
        regions = given[f"foreground_{level}"]
        assert regions.shape == (1, 64 * 128 // area)
        assert set(np.unique(regions)) <= {0.0, 1.0}
    assert 0.1 < given["foreground_in_0"].mean() < 0.9


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mode": "full", "reference_mask": REFERENCE_MASK},
            "mode full needs to know the sketch's foreground: give ske",
        ),
        (
            {"mode": "background", "sketch_mask": SKETCH_MASK},
            "mode background needs to know the reference's foreground",
        ),
        (
            {"mode": "foreground+background"},
            "ColorizeDiffusion v2 has no mode 'foreground.*'; it has vanilla, style, ba",
        ),
        ({"mode": "sparkle"}, "unknown mode 'sparkle'; expected vanilla, style, background, full, foreground or foreg"),
        ({"guidance_scale": -1}, "guidance_scale must be at least 0, got -1"),
        ({"sketch_guidance_scale": -0.5}, "sketch_guidance_scale must be at least 0, got -0.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan"),
        ({"merge_scale": 1.5}, "merge_scale must be between 0 and 1, got 1.5"),
        ({"sampler": "brownian"}, "unknown sampler 'brownian'; expected one of diffuser_dpm, "),
        ({"scheduler": "cosine"}, "unknown scheduler 'cosine'; expected one of Automatic, "),
        ({"steps": 0}, "steps must be between 1 and 998, got 0"),
        ({"level_strengths": (1, 1)}, "level_strengths must be 3 numbers, got 2"),
        ({"preprocess": "extract"}, "unknown preprocess 'extract'; expected invert, none or invert-webui"),
        ({"remove_background": True}, "remove_background needs a network that finds the result's foreground"),
        ({"remove_foreground": True}, "remove_foreground needs a mask of the background picture"),
        ({"size": 100}, "size: height must be a positive multiple of 64, got 100; the nearest: 64, 128"),
        ({"size": (64, 1024)}, "size 64x1024 is in none of the bundle's profiles"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        colorizer_of()(SKETCH, REFERENCE, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.5}, "ColorizeDiffusion v2 has no option 'eta'; it has mode, background, sketch_mask, "),
        ({"guidance_scale": "4"}, "guidance_scale must be a number, got '4'"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"crop": 1}, "crop must be True or False, got 1"),
        ({"level_strengths": 1}, "level_strengths must be 3 numbers, got 1"),
    ],
)
def test_options_of_the_wrong_kind(options, message):
    with pytest.raises(TypeError, match=message):
        colorizer_of()(SKETCH, REFERENCE, **options)


def test_masks_that_do_not_fit():
    colorizer, given = colorizer_of(), {"mode": "full", **QUICK}
    with pytest.raises(ImageError, match="the sketch mask is 38x52 px, but its picture is 100x60 px"):
        colorizer(SKETCH, REFERENCE, sketch_mask=REFERENCE_MASK, reference_mask=REFERENCE_MASK, **given)
    with pytest.raises(ImageError, match="the reference mask is 100x60 px, but its picture is 38x52 px"):
        colorizer(SKETCH, REFERENCE, sketch_mask=SKETCH_MASK, reference_mask=SKETCH_MASK, **given)
    with pytest.raises(ValueError, match="sketch_mask: expected one picture, or one for each of the 2 sketches, got 3"):
        colorizer([SKETCH] * 2, REFERENCE, sketch_mask=[SKETCH_MASK] * 3, reference_mask=REFERENCE_MASK, **given)


def test_a_mode_without_its_reference():
    with pytest.raises(ValueError, match="mode style needs a reference; only vanilla colours without one"):
        colorizer_of()(SKETCH, None, mode="style", **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mode": "full"},
            r"mode full with guidance reference needs denoiser_split_fg_bg_warp_reference.*--modes full",
        ),
        (
            {"sketch_guidance_scale": 2},
            "mode vanilla with guidance both needs .*; export it again with .*--guidance both",
        ),
        ({"mode": "style", "guidance_scale": 1}, "needs denoiser_vanilla_none, which .* lacks .*--guidance none"),
    ],
)
def test_what_the_bundle_was_exported_without(options, message):
    colorizer = colorizer_of(modes=("vanilla",), guidances=("reference",), merge=False)
    with pytest.raises(BundleError, match=message):
        colorizer(SKETCH, REFERENCE, **MASKS, **options)


def test_a_bundle_without_its_image_encoder():
    colorizer = colorizer_of(modes=("vanilla",), without=("image_encoder",))
    with pytest.raises(
        BundleError, match="exported without an image encoder, so it colours without a reference alone; "
    ):
        colorizer(SKETCH, REFERENCE, **QUICK)
    want = colorizer_of(modes=("vanilla",))(SKETCH, None, **QUICK)
    np.testing.assert_array_equal(pixels(colorizer(SKETCH, None, **QUICK)), pixels(want))


def test_a_bundle_without_merging():
    colorizer = colorizer_of(modes=("background",), guidances=("reference",), merge=False)
    with pytest.raises(
        BundleError, match=r"merge_scale above 0 needs .*_merge_reference.*--modes background .* --merge"
    ):
        colorizer(SKETCH, REFERENCE, mode="background", merge_scale=0.5, **MASKS)

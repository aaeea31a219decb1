"""Conditions and whole runs against the published tool's, with PyTorch networks in place of engines."""

from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install 'saishiki[export]'")
if find_spec("open_clip") is None:
    pytest.skip("needs open_clip: pip install 'saishiki[export]'", allow_module_level=True)

from saishiki.models.colorizediffusion.hoists import HOISTS
from saishiki.runtime.backends.protocol import no_progress
from saishiki.runtime.images import uint8_from_normalized
from saishiki.runtime.noise import Noise
from saishiki.runtime.options import options_from
from saishiki.runtime.pipelines.colorizediffusion import GENERATIONS, ColorizeDiffusionOptions
from saishiki.runtime.pipelines.colorizediffusion.conditions import conditions_of, needs_of
from saishiki.runtime.pipelines.colorizediffusion.encoders import Encoders, scaled
from saishiki.runtime.pipelines.colorizediffusion.replay import scenes_from_arrays
from saishiki.runtime.pipelines.colorizediffusion.sketch import empty_sketch
from tests.conformance import FOLDER
from tests.runtime.pipelines.colorizediffusion.cases import arrays_of, cases_of, settings_of
from tests.runtime.pipelines.colorizediffusion.published import pipeline_of

pytestmark = pytest.mark.skipif(
    not (FOLDER / "colorizediffusion-v2").is_dir(), reason=f"needs the conformance cases in {FOLDER}"
)

RUNS = {
    "v1": ("e2e_vanilla_2m_both", "e2e_split"),
    "v1.5": ("e2e_split", "e2e_split_background"),
    "v2": ("e2e_style", "e2e_bg", "e2e_full_background"),
}


def all_of(module):
    return [(generation, name) for generation in GENERATIONS for name in cases_of(generation, module)]


def scenes_and_options(pipeline, case):
    options = options_from(ColorizeDiffusionOptions, settings_of(case), owner="this")
    return scenes_from_arrays(arrays_of(case), options, needs_of(pipeline.generation, options.mode)), options


def run(generation, name, **changes):
    case = cases_of(generation, "pipeline")[name]
    pipeline = pipeline_of(generation, prediction=case.params["parameterization"])
    scenes, options = scenes_and_options(pipeline, case)
    options = options_from(ColorizeDiffusionOptions, {**vars(options), **changes}, owner="this")
    return case, pipeline, scenes, options, Noise(arrays_of(case)["start"], None)


@pytest.mark.parametrize(("generation", "name"), [(g, name) for g, names in RUNS.items() for name in names])
def test_a_published_run(generation, name):
    case, pipeline, scenes, options, noise = run(generation, name)
    z = pipeline.sample(scenes, options, noise, no_progress)
    image = pipeline.replay(arrays_of(case), settings_of(case), no_progress)
    case.check({"z": z, "image": image, "uint8_hwc": uint8_from_normalized(image)})


@pytest.mark.parametrize(("generation", "name"), [("v1", "e2e_split"), ("v1.5", "e2e_split"), ("v2", "e2e_style")])
def test_a_published_run_without_any_hoist(generation, name):
    case = cases_of(generation, "pipeline")[name]
    how = {"prediction": case.params["parameterization"], "without_hoists": HOISTS}
    image = pipeline_of(generation, **how).replay(arrays_of(case), settings_of(case), no_progress)
    tolerance = case.entry["tol"]["image"]
    np.testing.assert_allclose(image, case.outputs["image"], atol=tolerance["atol"], rtol=tolerance["rtol"])


@pytest.mark.parametrize("hoist", ["time", "masks", "warp"])
def test_a_published_run_without_a_hoist(hoist):
    case = cases_of("v2", "pipeline")["e2e_bg"]
    image = pipeline_of("v2", without_hoists=(hoist,)).replay(arrays_of(case), settings_of(case), no_progress)
    tolerance = case.entry["tol"]["image"]
    np.testing.assert_allclose(image, case.outputs["image"], atol=tolerance["atol"], rtol=tolerance["rtol"])


@pytest.mark.parametrize(
    ("generation", "name", "changes"),
    [
        ("v1", "e2e_split", {"region_strengths": "named"}),
        ("v1", "e2e_split", {"sketch_threshold": 0.3}),
        ("v1.5", "e2e_split", {"reference_threshold": 0.3}),
        ("v2", "e2e_bg", {"background_factor": 1.0}),
        ("v2", "e2e_full_background", {"merge_scale": 0.0}),
    ],
)
def test_what_acts_in_a_published_run(generation, name, changes):
    case, pipeline, scenes, options, noise = run(generation, name, **changes)
    z = pipeline.sample(scenes, options, noise, no_progress)
    assert np.abs(z - case.outputs["z"]).max() > 0.01


@pytest.mark.parametrize(("generation", "name"), all_of("prepare_conditions"))
def test_published_conditions(generation, name):
    case = cases_of(generation, "prepare_conditions")[name]
    pipeline = pipeline_of(generation)
    (scene,), options = scenes_and_options(pipeline, case)
    case.check(conditions(pipeline, scene, options))


def conditions(pipeline, scene, options):
    """The published names of what a run is conditioned on."""
    encoders, cache = Encoders(pipeline.modules, pipeline.reference_cache), pipeline.reference_cache
    made = conditions_of(scene, options, pipeline.generation, encoders)
    contexts = [cache(node)["tokens"] for node in made.contexts]
    got = {"context": np.concatenate(contexts, axis=1), "mask": scene.mask}
    height, width = scene.size
    for prefix, sketch in (("", scene.sketch), ("uc_sketch_", empty_sketch(height=height, width=width).pixels)):
        hints = cache(encoders.hints(sketch))
        got |= {f"{prefix}control{i}": hints[f"hint_{i}"] * options.control_scale for i in range(5)}
    if made.maps is not None:
        maps = scaled(cache(made.maps), options.background_factor)
        got |= {f"hs_bg{i}": tensor for i, tensor in enumerate(maps.values())}
    return got | styles(pipeline, cache(made.style)["style"] if made.style is not None else None)


def styles(pipeline, style):
    if style is None:
        return {}
    from tests.runtime.pipelines.colorizediffusion.published import network_of

    ends = np.cumsum(network_of(pipeline.generation).config.style_widths)[:-1]
    return {f"style_modulations{i}": vector for i, vector in enumerate(np.split(style, ends, axis=1))}


WINDOWS = [
    ("v1", "sample_window_end"),
    ("v1", "sample_quirk_window_start"),
    ("v1.5", "sample_quirk_window_ignored"),
    ("v2", "sample_quirk_window_ignored"),
]


def window_run(generation, name, windows):
    case = cases_of(generation, "sample")[name]
    conditions = cases_of(generation, "prepare_conditions")[case.params["conditions_from"]]
    pipeline = pipeline_of(generation, prediction=case.params["parameterization"])
    (start, end), (no_start, no_end) = case.params["guidance_steps"], case.params["no_guidance_steps"]
    limits = {"guidance_start": start, "guidance_end": end, "no_guidance_start": no_start, "no_guidance_end": no_end}
    how = {"sampler": case.params["sampler"], "steps": case.params["steps"], "windows": windows}
    scenes, options = scenes_and_options(pipeline, conditions)
    options = options_from(ColorizeDiffusionOptions, {**vars(options), **limits, **how}, owner="this")
    return case, pipeline.sample(scenes, options, Noise(case.inputs["init_noise"], None), no_progress)


@pytest.mark.parametrize(("generation", "name"), WINDOWS)
def test_published_windows(generation, name):
    case, z = window_run(generation, name, "published")
    tolerance = case.entry["tol"]["z"]
    np.testing.assert_allclose(z, case.outputs["z"], atol=tolerance["atol"], rtol=tolerance["rtol"])


@pytest.mark.parametrize(("generation", "name"), WINDOWS)
def test_windows_act_as_named(generation, name):
    case, z = window_run(generation, name, "named")
    acts_as_published = name == "sample_window_end"
    assert (np.abs(z - case.outputs["z"]).max() < 1e-3) == acts_as_published

"""The three families: recognising them, what a request exports of them, and recorded runs."""

from dataclasses import replace

import pytest
import torch

from saishiki.export.drawings import draw_pairs
from saishiki.models import CheckpointError, LoadOptions, recognize
from saishiki.models.animediffusion import ANIMEDIFFUSION
from saishiki.models.colorizediffusion.exported import exported_of
from saishiki.models.colorizediffusion.family import COLORIZEDIFFUSION
from saishiki.models.colorizediffusion.network import SCHEDULE_BUFFERS
from saishiki.runtime.pipelines.colorizediffusion import MODES
from saishiki.runtime.signature import Profile
from tests.models.colorizediffusion.small import GENERATIONS, small_config, small_network, stated_by

FAMILIES = dict(zip(GENERATIONS, COLORIZEDIFFUSION, strict=True))
V = LoadOptions(prediction="v")


@pytest.fixture
def loaded(checkpoint_of):
    """A small network of a generation as its family loads it."""

    def load(generation, options=V, *, image_encoder=True):
        config = small_config(generation)
        betas = torch.linspace(0.01, 0.4, config.timesteps)
        schedule = {"betas": betas, "alphas_cumprod": (1 - betas).cumprod(dim=0)}
        state = small_network(config).state_dict() | schedule
        if not image_encoder:
            state = {key: tensor for key, tensor in state.items() if not key.startswith("cond_stage_model.")}
        checkpoint = checkpoint_of(state, config)
        family = recognize(checkpoint)
        assert family is FAMILIES[generation]
        family.check_options(options)
        return family.load(checkpoint, options)

    return load


SHARED = {"image_encoder", "sketch_encoder", "vae_decoder", "time_projection"}
MODULES = {
    "v1": SHARED | {"context_projector", "denoiser_vanilla_reference", "denoiser_split_reference"},
    "v1.5": SHARED
    | {"context_projector", "context_projector_bg", "threshold_embedder", "cluster_transformer"}
    | {"denoiser_vanilla_reference", "denoiser_split_bg_reference"},
    "v2": SHARED
    | {"context_projector", "context_projector_fg", "context_projector_bg", "vae_encoder", "style_encoder"}
    | {"background_encoder", "style_projector", "warp_projector"}
    | {"denoiser_vanilla_reference", "denoiser_split_fg_bg_warp_reference"},
}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_family_exports_the_published_modes_by_default(generation, loaded):
    model = loaded(generation)
    assert model.modules.keys() == MODULES[generation] == model.signatures.keys()
    assert model.config["modes"] == tuple(m for m in MODES[generation] if not m.startswith("foreground"))
    assert (model.config["guidance"], model.config["merge"], model.prediction) == (("reference",), False, "v")
    assert model.variant == "custom"
    assert model.schedule.keys() == set(SCHEDULE_BUFFERS)
    groups = {name for name in model.modules if name.startswith(("denoiser", "context_projector"))}
    assert model.weight_groups.keys() == groups
    assert any("velocity (v), as told" in notice for notice in model.notices)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"modes": ("vanilla",)}, {"context_projector", "time_projection", "denoiser_vanilla_reference"}),
        (
            {"modes": ("vanilla",), "without_hoists": ("time", "kv")},
            # v2's time embedding is needed for style tables all the same.
            {"time_projection", "denoiser_vanilla_reference"},
        ),
        (
            {"modes": ("background",), "guidance": ("none", "both"), "merge": True, "without_hoists": ("warp",)},
            {"background_encoder", "vae_encoder", "context_projector_fg", "context_projector_bg", "time_projection"}
            | {"denoiser_split_fg_bg_warp_none", "denoiser_split_fg_bg_warp_merge_none"}
            | {"denoiser_split_fg_bg_warp_both", "denoiser_split_fg_bg_warp_merge_both"},
        ),
    ],
    ids=["vanilla", "unhoisted", "background"],
)
def test_a_bundle_has_the_modules_of_what_was_asked_for(options, expected, loaded):
    model = loaded("v2", replace(V, **options))
    assert model.modules.keys() == expected | SHARED - {"time_projection"}


@pytest.mark.parametrize(
    ("generation", "options", "message"),
    [
        ("v1", {"modes": ("style",)}, "ColorizeDiffusion v1 has no mode 'style'; it has vanilla, background"),
        ("v2", {"modes": ("foreground+background",)}, "ColorizeDiffusion v2 has no mode 'foreground\\+background'"),
        ("v2", {"guidance": ("much",)}, "no guidance much: expected some of none, reference, sketch, both"),
        ("v2", {"without_hoists": ("kv", "cubes")}, "no hoist cubes: expected some of time, kv, masks"),
    ],
)
def test_what_cannot_be_exported_is_refused(generation, options, message):
    with pytest.raises(ValueError, match=message):
        exported_of(generation, LoadOptions(**options), has_image_encoder=True)


def test_without_an_image_encoder_there_is_the_vanilla_mode(loaded):
    model = loaded("v2", image_encoder=False)
    assert model.config["modes"] == ("vanilla",)
    assert "image_encoder" not in model.modules
    with pytest.raises(ValueError, match="the modes vanilla, full need the image encoder, which the checkpoint does "):
        exported_of("v2", LoadOptions(modes=("vanilla", "full")), has_image_encoder=False)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            ANIMEDIFFUSION,
            {"modes": ("vanilla",), "merge": True},
            "^--modes, --merge: not known to animediffusion, wh",
        ),
        (FAMILIES["v2"], {"attention_head": 4}, "^--attention-heads: not known to colorizediffusion-v2, which has --"),
    ],
)
def test_an_option_that_a_family_does_not_know_is_refused_by_name(family, options, message):
    family.check_options(LoadOptions())
    with pytest.raises(ValueError, match=message):
        family.check_options(LoadOptions(**options))


def test_tensors_of_two_generations_are_told_when_loading(checkpoint_of):
    config = small_config("v2")
    state = small_network(config).state_dict() | {"thresh_embedder.embed_layer.0.weight": torch.ones(4, 4)}
    checkpoint = checkpoint_of(state, metadata=stated_by(config))
    family = recognize(checkpoint)
    with pytest.raises(CheckpointError, match=r"holds tensors of two generations of ColorizeDiffusion, v1\.5"):
        family.load(checkpoint, V)


def test_complete_adds_the_sizes_that_follow():
    points = [{"batch": 1, "height": h, "width": 768, "steps": 20} for h in (512, 512, 768)]
    added = [[p[s] for s in ("contexts", "count", "positions")] for p in points_of(FAMILIES["v1.5"], points)]
    assert added == [[1, 2, 96], [1, 2, 96], [2, 2, 144]]
    assert [p["contexts"] for p in points_of(FAMILIES["v2"], points)] == [1, 1, 1]


def points_of(family, points):
    profile = family.complete(Profile(*points))
    return profile.min, profile.opt, profile.max


def relative(got, want):
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize(("generation", "mode"), [("v1.5", "background"), ("v2", "full")])
def test_record_is_the_same_run_with_the_exported_modules(generation, mode, loaded):
    """The published network row by row, and the hoisted denoiser: two ways through nearly no common code."""
    model = loaded(generation)
    pictures = draw_pairs(2, 64, 128, seed=3)
    with torch.inference_mode():
        whole = model.record(mode, *pictures, steps=3)
        split = model.record(mode, *pictures, steps=3, substitute=lambda name, module: module)
        moved = model.record(mode, *pictures, steps=3, substitute=Moved)
    assert (whole.states.shape, whole.image.shape) == ((3, 2, 4, 8, 16), (2, 3, 64, 128))
    assert relative(split.states, whole.states) < 1e-5 > relative(split.image, whole.image)
    assert relative(moved.image, whole.image) > 1e-3
    assert whole.settings == {"mode": mode, "steps": 3, "guidance_scale": 4.0, "sketch_guidance_scale": 1.0}
    names = {"sketch", "reference", "start", "mask", "reference_mask"}
    draws = {"reference_noise_0", "reference_noise_1"} if generation == "v2" else set()
    assert whole.inputs.keys() == names | draws


class Moved(torch.nn.Module):
    """A module whose output is one percent too large."""

    def __init__(self, name, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs) * 1.01

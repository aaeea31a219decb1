"""The exported modules in PyTorch: shapes as their signatures say, and the published network's numbers."""

from dataclasses import fields
from functools import cache

import pytest
import torch

from saishiki.export.drawings import draw_pairs
from saishiki.models import LoadOptions, read_checkpoint, recognize
from saishiki.models.colorizediffusion.denoiser import Denoiser
from saishiki.models.colorizediffusion.denoiser_probes import MERGE_SCALE, THRESHOLD, scene_from_conditions, scene_of
from saishiki.models.colorizediffusion.guided_rows import Attending, predict_rows
from saishiki.models.colorizediffusion.hoists import HOISTS, PLAIN, DenoiserHoists, hoists_without
from saishiki.models.colorizediffusion.probes import Probe
from saishiki.runtime.pipelines.colorizediffusion import GUIDANCES, MODES, variant_of
from tests.conformance import FOLDER

LANDSCAPE, PORTRAIT = (64, 128, 1), (128, 64, 2)
PUBLISHED_BUDGET = 2e-6
"""A few times what fp32 rounds by in these networks; a wrong row, region or scale is off by more than 1e-3."""


@cache
def model_of(generation):
    path = FOLDER / f"colorizediffusion-{generation}" / "tiny.safetensors"
    if not path.is_file():
        pytest.skip(f"no tiny checkpoint at {path}; set SAISHIKI_CONFORMANCE to its folder")
    checkpoint = read_checkpoint(path)
    options = LoadOptions(prediction="v", modes=MODES[generation], guidance=GUIDANCES, merge=True)
    return recognize(checkpoint).load(checkpoint, options)


def sizes_at(height, width, batch, generation):
    symbols = {"batch": batch, "height": height, "width": width, "steps": 3, "count": 2}
    contexts = 2 if generation == "v1.5" else 1
    return symbols | {"contexts": contexts, "positions": height * width // 64**2}


def relative(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


def outputs_of(module, inputs):
    with torch.inference_mode():
        outputs = module(**inputs)
    return (outputs,) if isinstance(outputs, torch.Tensor) else outputs


@pytest.mark.parametrize(
    ("generation", "height", "width", "batch"),
    [("v1", *PORTRAIT), ("v1.5", *PORTRAIT), ("v2", *LANDSCAPE), ("v2", *PORTRAIT)],
)
def test_probes_and_outputs_have_the_shapes_of_the_signature(generation, height, width, batch):
    model, sizes = model_of(generation), sizes_at(height, width, batch, generation)
    for name, module in model.modules.items():
        signature = module.signature
        if name.startswith("denoiser") and not name.endswith("both"):
            continue
        with torch.inference_mode():
            inputs = model.probe(name, sizes, *draw_pairs(batch, height, width, seed=0))
        outputs = outputs_of(module, inputs)
        for specs, tensors in ((signature.inputs, inputs.values()), (signature.outputs, outputs)):
            found = [(spec.name, tuple(tensor.shape)) for spec, tensor in zip(specs, tensors, strict=True)]
            assert found == [(spec.name, spec.shape(sizes)) for spec in specs], name


def scene(generation, mode, guidance, *, merge=False, batch=2):
    model = model_of(generation)
    denoiser = Denoiser(model.network.unet, variant_of(generation, mode, guidance, merge), DenoiserHoists())
    probe = Probe(model.network, {}, *draw_pairs(batch, 64, 128, seed=0))
    with torch.inference_mode():
        return denoiser, probe, scene_of(probe, denoiser, mode)


@pytest.mark.parametrize(
    ("generation", "mode", "guidance", "merge"),
    [
        *(("v2", "full", guidance, False) for guidance in GUIDANCES),
        ("v1", "vanilla", "reference", False),
        ("v1", "background", "both", True),
        ("v1.5", "background", "both", False),
        ("v1.5", "foreground", "both", True),
        ("v1.5", "foreground+background", "both", False),
        ("v2", "style", "both", False),
        ("v2", "full", "both", True),
        ("v2", "foreground", "both", True),
    ],
)
def test_denoiser_gives_the_published_rows(generation, mode, guidance, merge):
    """The published U-Net on every row, against the denoiser with everything hoisted, pictures of a batch differing."""
    denoiser, probe, given = scene(generation, mode, guidance, merge=merge)
    how = Attending(threshold=THRESHOLD, merge_scale=MERGE_SCALE if merge else 0.0)
    with torch.inference_mode():
        rows = [probe.conditions(mode, row) for row in range(2)]
        got = denoiser(**given.inputs(denoiser.signature)).unflatten(0, (-1, 2))
        for row, conditions in enumerate(rows):
            x, t = given.x[row : row + 1], given.t[row : row + 1]
            want = predict_rows(denoiser.unet, x, t, conditions, guidance=guidance, how=how)
            assert relative(got[:, row], want) < PUBLISHED_BUDGET


def rounding_of(denoiser, given):
    """How far fp32 is from fp64 in the plain denoiser."""
    plain = Denoiser(denoiser.unet, denoiser.variant, PLAIN)
    inputs = given.inputs(plain.signature)
    (single,) = outputs_of(plain, inputs)
    plain.double()
    try:
        (exact,) = outputs_of(plain, {name: tensor.double() for name, tensor in inputs.items()})
    finally:
        plain.float()
    return single, relative(single, exact)


@pytest.fixture(scope="module")
def full_scene():
    denoiser, _, given = scene("v2", "full", "both", merge=True)
    return denoiser, given, *rounding_of(denoiser, given)


@pytest.mark.parametrize("hoist", HOISTS)
def test_a_hoist_changes_nothing_but_rounding(hoist, full_scene):
    denoiser, given, _, rounding = full_scene
    without = Denoiser(denoiser.unet, denoiser.variant, hoists_without([hoist]))
    (hoisted,), (unhoisted,) = (outputs_of(m, given.inputs(m.signature)) for m in (denoiser, without))
    assert relative(hoisted, unhoisted) <= 2 * rounding


def test_all_hoists_together_change_nothing_but_rounding(full_scene):
    denoiser, given, plain, rounding = full_scene
    (hoisted,) = outputs_of(denoiser, given.inputs(denoiser.signature))
    assert 0 < rounding < 1e-5
    assert relative(hoisted, plain) <= 2 * rounding


HOISTED_INPUTS = {
    "time": "time",
    "kv": "value_03",
    "masks": "foreground_out_1",
    "style": "modulation",
    "warp": "warp_key_07",
}


@pytest.mark.parametrize("name", HOISTED_INPUTS.values(), ids=HOISTED_INPUTS)
def test_a_hoisted_input_that_is_off_is_seen(name, full_scene):
    """What is handed in matters: each of the inputs, changed a little, moves the prediction past rounding."""
    denoiser, given, plain, rounding = full_scene
    inputs = dict(given.inputs(denoiser.signature))
    inputs[name] = 1 - inputs[name] if name.startswith("foreground") else inputs[name] * 1.01
    (moved,) = outputs_of(denoiser, inputs)
    assert relative(moved, plain) > 20 * rounding


def test_strengths_and_scales_are_the_values(full_scene):
    """Strengths in a plain denoiser are what the hoisted one's values are multiplied by."""
    denoiser, given, *_ = full_scene
    plain = Denoiser(denoiser.unet, denoiser.variant, PLAIN)
    inputs = given.inputs(plain.signature)
    strong = dict(inputs) | {"strengths": torch.linspace(0.5, 1.5, 16), "fg_scale": torch.tensor([0.8])}
    values = {field.name: getattr(given, field.name) for field in fields(given)}
    scaled = type(given)(**values | {"strengths": strong["strengths"], "fg_scale": 0.8})
    (got,), (want,) = outputs_of(denoiser, scaled.inputs(denoiser.signature)), outputs_of(plain, strong)
    assert relative(got, want) < PUBLISHED_BUDGET
    assert relative(got, outputs_of(plain, inputs)[0]) > 1e-3


def test_without_a_style_the_modulation_is_zero_and_changes_nothing():
    denoiser, probe, given = scene("v2", "vanilla", "none")
    with torch.inference_mode():
        conditions = probe.conditions("vanilla", 0)
        plain = scene_from_conditions(denoiser, given.x[:1], given.t[:1], [conditions])
        inputs = plain.inputs(denoiser.signature)
        want = predict_rows(denoiser.unet, plain.x, plain.t, conditions, guidance="none", how=Attending())
    assert inputs["modulation"].abs().max() == 0
    (got,) = outputs_of(denoiser, inputs)
    assert relative(got, want) < PUBLISHED_BUDGET


def test_hoists_without_refuses_a_name_that_is_none():
    with pytest.raises(ValueError, match=r"no hoist warps: expected some of time, kv, masks, style, warp, guidance"):
        hoists_without(["time", "warps"])


def test_the_names_of_hoists_are_those_of_the_dataclass():
    assert hoists_without([]) == DenoiserHoists()
    assert hoists_without(["kv"]).switched_off == ("kv",)
    assert PLAIN.switched_off == HOISTS

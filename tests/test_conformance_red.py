"""That the published cases of ColorizeDiffusion tell a wrong network from the right one: each change turns one red."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.conformance import FOLDER, Case, cases_of
from tests.conformance_runners.colorizediffusion import network

V1, V15, V2 = (f"colorizediffusion-{generation}" for generation in ("v1", "v1.5", "v2"))


def case_of(family: str, name: str) -> Case:
    found = [case for case in cases_of(family) if case.name == name]
    if not found:
        pytest.skip(f"needs the case {name} of {family} in {FOLDER}")
    return found[0]


def with_params(case: Case, **changes: object) -> Case:
    return replace(case, entry={**case.entry, "params": {**case.params, **changes}})


def run(case: Case) -> None:
    case.check(network.NETWORK[case.module](case))


@pytest.mark.parametrize(
    ("family", "name", "changes"),
    [
        (V2, "sample_default_dpm", {"parameterization": "eps"}),
        (V2, "sample_default_dpm", {"gs": [4.1, 1.0]}),
        (V2, "sample_default_dpm", {"sampler": "diffuser_ddim"}),
        (V2, "cfg_both_v_full", {"guidance": "reference", "gs": [4.0, 1.0]}),
        (V2, "cfg_reference_v_split", {"fg_scale": 1.0}),
        (V2, "cfg_both_v_split", {"mask_threshold": 0.5}),
        (V15, "cfg_reference_v_split", {"merge_scale": 0.0}),
        (V1, "sample_window_end", {"guidance_steps": [0.0, 1.0]}),
        (V2, "prepare_bg", {"mask_scale": 1.0}),
        (V2, "prepare_style_background", {"merge_scale": 0.0}),
        (V2, "prepare_full_background", {"style_enhance": False}),
        (V15, "prepare_split", {"mask_threshold_sketch": 0.3}),
        (V1, "prepare_split", {"mask_threshold_ref": 0.2}),
        (V1, "e2e_split", {"strength": 0.9}),
        (V1, "vae_encode_128x96", {"scale_factor": 0.18}),
    ],
)
def test_another_setting_is_red(family: str, name: str, changes: dict[str, object]) -> None:
    case = case_of(family, name)
    run(case)
    with pytest.raises(AssertionError):
        run(with_params(case, **changes))


def swap_loras(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = unet.state_dict()
    return {key: state[key.replace("_fg.", "_?.").replace("_bg.", "_fg.").replace("_?.", "_bg.")] for key in state}


def scale(key: str) -> Callable[[torch.nn.Module], dict[str, torch.Tensor]]:
    return lambda module: {key: module.state_dict()[key] * 1.01}


@pytest.mark.parametrize(
    ("family", "name", "part", "changed"),
    [
        (V2, "cfg_reference_v_split", "model.diffusion_model", swap_loras),
        (V2, "cfg_reference_v_style", "model.diffusion_model", scale("style_modules.4.1.weight")),
        (V1, "vae_decode_12x16", "first_stage_model", scale("decoder.mid.attn_1.proj_out.weight")),
        (V1, "clip_encode_224_local", "cond_stage_model", scale("visual.model.proj")),
        (V15, "prepare_split", "transformer", scale("layers.1.2.to_v.weight")),
    ],
)
def test_another_weight_is_red(
    family: str, name: str, part: str, changed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(family, name)
    run(case)
    other = copy.deepcopy(network.network_of(family))
    module = other.get_submodule(part)
    module.load_state_dict(changed(module), strict=False)
    monkeypatch.setattr(network, "network_of", lambda _: other)
    with pytest.raises(AssertionError):
        run(case)

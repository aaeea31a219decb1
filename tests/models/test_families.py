import pytest
import torch

from saishiki.models import CheckpointError, families, read_checkpoint, recognize
from saishiki.models.animediffusion import ANIMEDIFFUSION

STABLE_DIFFUSION = {
    "model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3),
    "model.diffusion_model.time_embed.0.weight": torch.ones(4, 4),
    "first_stage_model.encoder.conv_in.weight": torch.ones(4, 3, 3, 3),
    "cond_stage_model.model.ln_final.weight": torch.ones(4),
    "betas": torch.ones(10),
    "alphas_cumprod": torch.ones(10),
}


@pytest.mark.parametrize("name", ["sd-v2-1.safetensors", "colorizediffusion-xl.safetensors", "x.safetensors"])
def test_recognize_by_tensors_and_never_by_name(saved, small_state, name):
    assert recognize(read_checkpoint(saved(small_state, name))) is ANIMEDIFFUSION


def test_recognize_another_family(saved):
    path = saved(STABLE_DIFFUSION, "animediffusion.safetensors")
    with pytest.raises(CheckpointError) as error:
        recognize(read_checkpoint(path))
    message = str(error.value)
    known = ", ".join(family.name for family in families.FAMILIES)
    assert message.startswith(f"{path}: its tensors are those of no family, expected one of {known}; they are ")
    assert "alphas_cumprod, betas, cond_stage_model.model.ln_final.weight, " in message
    assert message.endswith("and 1 more: give a whole checkpoint of such a network")


def test_recognize_two_families_at_once(saved, small_state, monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", (ANIMEDIFFUSION, ANIMEDIFFUSION))
    with pytest.raises(CheckpointError, match="those of animediffusion and animediffusion, expected one of"):
        recognize(read_checkpoint(saved(small_state)))

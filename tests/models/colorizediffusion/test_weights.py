import pytest
import torch

from saishiki.models import LoadOptions, read_checkpoint
from saishiki.models.checkpoints import Checkpoint
from saishiki.models.colorizediffusion import ImageEncoderConfig
from saishiki.models.colorizediffusion.dimensions import IMAGE_TOWER as TOWER
from saishiki.models.colorizediffusion.loading import load
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from tests.models.colorizediffusion.small import save, small_config, small_state, stated_by, without

OPTIONS = LoadOptions()


def test_ema_and_text_encoder_are_left_out_and_said(checkpoint_of):
    config = small_config("v1")
    more = {
        "model_ema.decay": torch.ones(1),
        "model_ema.diffusion_modelout0bias": torch.ones(4),
        "cond_stage_model.transformer.model.logit_scale": torch.ones(()),
    }
    loaded = load(checkpoint_of(small_state(config) | more, config), OPTIONS)
    assert [notice for notice in loaded.notices if "nothing uses" in notice] == [
        "the checkpoint also holds a moving average of the U-Net's weights (model_ema.*), which nothing uses",
        "the checkpoint also holds a text encoder (cond_stage_model.transformer.*), which nothing uses",
    ]


def test_image_encoder_absent(checkpoint_of):
    config = small_config("v1")
    loaded = load(checkpoint_of(without(small_state(config), TOWER), config), OPTIONS)
    assert loaded.network.cond_stage_model is None
    assert loaded.image_encoder is None
    assert "neither the checkpoint nor a file of its own holds the image encoder" in loaded.notices[1]
    assert "OpenCLIP ViT-H-14 laion2b_s32b_b79k with --image-encoder" in loaded.notices[1]


TEXT_TOWER = {"token_embedding.weight": torch.ones(3, 2), "transformer.resblocks.0.ln_1.bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [("visual.", TEXT_TOWER), ("", {}), (TOWER, TEXT_TOWER), ("visual.model.", {})],
    ids=["open_clip", "tower-alone", "checkpoint", "module"],
)
def test_image_encoder_from_a_file(checkpoint_of, tmp_path, prefix, beside):
    config = small_config("v1")
    state = small_state(config)
    own = without(state, TOWER)
    tower = {prefix + key.removeprefix(TOWER): tensor + 1 for key, tensor in state.items() if key.startswith(TOWER)}
    path = save(tmp_path / "clip.safetensors", tower | beside, {"clip": '{"head_width": 16}'})
    loaded = load(checkpoint_of(own, config), LoadOptions(image_encoder=path))
    key = TOWER + "proj"
    assert torch.equal(loaded.network.state_dict()[key], state[key] + 1)
    assert loaded.image_encoder.sha256 == read_checkpoint(path).sha256
    assert loaded.notices[1] == f"the image encoder is the one in {path}"


def test_image_encoder_from_a_pickle(checkpoint_of, tmp_path):
    config = small_config("v1")
    state = small_state(config)
    tower = {"visual." + key.removeprefix(TOWER): tensor for key, tensor in state.items() if key.startswith(TOWER)}
    torch.save(tower | TEXT_TOWER, tmp_path / "open_clip_pytorch_model.bin")
    options = LoadOptions(image_encoder=tmp_path / "open_clip_pytorch_model.bin")
    loaded = load(checkpoint_of(without(state, TOWER), config), options)
    assert torch.equal(loaded.network.state_dict()[TOWER + "proj"], state[TOWER + "proj"])
    assert loaded.network.config == config, "the checkpoint states the width of the image encoder's heads"


def test_image_encoder_from_a_file_wins_over_the_checkpoints(checkpoint_of, tmp_path):
    config = small_config("v1")
    state = small_state(config)
    tower = {key: tensor + 1 for key, tensor in state.items() if key.startswith(TOWER)}
    path = save(tmp_path / "clip.safetensors", tower)
    loaded = load(checkpoint_of(state, config), LoadOptions(image_encoder=path))
    assert torch.equal(loaded.network.state_dict()[TOWER + "proj"], state[TOWER + "proj"] + 1)
    assert loaded.notices[1] == f"the image encoder is the one in {path}, not the one in the checkpoint"


def tower_of(config):
    return {key: tensor for key, tensor in small_state(config).items() if key.startswith(TOWER)}


@pytest.mark.parametrize(
    ("tower", "match"),
    [
        (
            {"visual_projection.weight": torch.ones(2)},
            r"clip\.safetensors: holds no image encoder in open_clip's names",
        ),
        (
            {key: t for key, t in tower_of(small_config("v1")).items() if ".mlp." not in key},
            r"clip\.safetensors: does not fit .*missing: .*mlp\.c_fc\.bias",
        ),
        (
            {key: t for key, t in tower_of(small_config("v1")).items() if not key.endswith("proj")},
            r"clip\.safetensors: taken for an image encoder of open_clip.*proj is missing",
        ),
        (
            tower_of(small_config("v1", image_encoder=ImageEncoderConfig(28, 14, 32, 1, 16, 48))),
            r"clip\.safetensors: its image encoder gives 4 tokens 48 wide, but .*\.safetensors was trained with 4, 64",
        ),
        (
            {TOWER + "positional_embedding": torch.ones(4, 32)},
            r"clip\.safetensors: holds no image encoder",
        ),
    ],
    ids=["other-names", "half", "no-projection", "another-width", "rest"],
)
def test_image_encoder_file_that_does_not_fit(checkpoint_of, tmp_path, tower, match, refused):
    config = small_config("v1")
    path = save(tmp_path / "clip.safetensors", tower, {"clip": '{"head_width": 16}'})
    refused(checkpoint_of(without(small_state(config), TOWER), config), match, LoadOptions(image_encoder=path))


def test_image_encoder_with_other_tokens_than_the_cluster_transformer(checkpoint_of, refused):
    config = small_config("v1.5", tokens=5)
    checkpoint = checkpoint_of(small_state(config), config)
    refused(checkpoint, r"its image encoder gives 4 tokens 64 wide, but .* was trained with 5, 64 wide")


def test_image_encoder_file_that_is_absent(checkpoint_of, tmp_path):
    config = small_config("v1")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(checkpoint_of(small_state(config), config), LoadOptions(image_encoder=tmp_path / "nowhere.safetensors"))


def test_image_encoder_whose_patches_make_no_square(refused):
    config = small_config("v1")
    with torch.device("meta"):
        state = ColorizeDiffusion(config).state_dict()
        state[TOWER + "positional_embedding"] = torch.zeros(6, 32)
    refused(Checkpoint("x", "", state, stated_by(config)), "5 patches of the image encoder's pictures make no square")

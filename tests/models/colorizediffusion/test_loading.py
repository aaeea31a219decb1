import json

import pytest
import torch
from safetensors.torch import load_file

from saishiki.models import LoadOptions, read_checkpoint
from saishiki.models.checkpoints import Checkpoint
from saishiki.models.colorizediffusion import CONFIGS, ImageEncoderConfig, VAEConfig
from saishiki.models.colorizediffusion.dimensions import UNET
from saishiki.models.colorizediffusion.loading import config_from_checkpoint, load
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from saishiki.models.streaming import value_of
from tests.conformance import FOLDER
from tests.models.colorizediffusion.small import (
    GENERATIONS,
    small_config,
    small_network,
    small_state,
    stated_by,
    without,
)

OPTIONS = LoadOptions()
CROSS = f"{UNET}output_blocks.3.1.transformer_blocks.0.attn2."


@pytest.mark.parametrize("stream", [False, True], ids=["at-once", "streamed"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_load_gives_the_saved_weights(checkpoint_of, generation, stream):
    config = small_config(generation)
    checkpoint = checkpoint_of(small_state(config), config)
    loaded = load(checkpoint, OPTIONS, stream=stream)
    assert loaded.network.config == config
    assert not loaded.network.training
    want = small_network(config)
    if stream:
        weights = dict(loaded.network.named_parameters())
        assert {weight.device.type for weight in weights.values()} == {"meta"}
        assert all(torch.equal(value_of(weights[name]), weight) for name, weight in want.named_parameters())
        assert all(torch.equal(loaded.network.get_buffer(name), buffer) for name, buffer in want.named_buffers())
    else:
        state = want.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.network.state_dict().items())
    assert loaded.notices[0].startswith(f"recognised as ColorizeDiffusion {generation} by ")
    assert loaded.notices[1:] == ("the image encoder is the one in the checkpoint",)


@pytest.mark.parametrize(
    "config",
    [
        small_config("v1", channel_mult=(1, 2, 2, 4), head_channels=8),
        small_config("v1", vae=VAEConfig(64, (1, 2), 3, 4, 0.2), timesteps=3),
        small_config("v1", image_encoder=ImageEncoderConfig(24, 8, 48, 2, 24, 64), tokens=9),
        small_config("v1.5", lora_fg=3, lora_bg=5, cluster_layers=1, threshold_width=6, channel_mult=(1, 1, 2, 2)),
        small_config("v1.5", lora_bg=0.5, channel_mult=(1, 1, 1, 3)),
        small_config("v2", size_width=8, warp_widths=(64,) * 5 + (128,) * 7, lora_bg=1),
    ],
    ids=["widths", "vae-and-T", "vit", "v1.5-ranks", "v1.5-share", "v2"],
)
def test_config_is_inferred_from_the_shapes(config):
    with torch.device("meta"):
        state = ColorizeDiffusion(config).state_dict()
    assert config_from_checkpoint(Checkpoint("x", "", state, stated_by(config)), OPTIONS) == config


@pytest.mark.parametrize("generation", GENERATIONS)
def test_config_of_the_published_networks_needs_no_metadata(generation):
    with torch.device("meta"):
        state = ColorizeDiffusion(CONFIGS[generation], image_encoder=False).state_dict()
    assert config_from_checkpoint(Checkpoint("x", "", state, {}), OPTIONS) == CONFIGS[generation]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_tiny_checkpoint_loads_exactly(generation):
    path = FOLDER / f"colorizediffusion-{generation}" / "tiny.safetensors"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    state, want = load(read_checkpoint(path), OPTIONS).network.state_dict(), load_file(path)
    assert state.keys() == want.keys()
    assert all(torch.equal(state[key], want[key].float()) for key in want)


def test_head_width_comes_from_option_metadata_or_publication(checkpoint_of, refused):
    config = small_config("v1", head_channels=8)
    stated, silent = (
        checkpoint_of(small_state(config), config),
        checkpoint_of(small_state(config), metadata={"clip": '{"head_width": 16}'}, name="silent.safetensors"),
    )
    assert config_from_checkpoint(stated, OPTIONS).head_channels == 8
    assert config_from_checkpoint(stated, LoadOptions(head_channels=4)).head_channels == 4
    refused(silent, "attention heads 64 wide do not divide its levels' widths .*32.*--head-channels")
    refused(silent, "attention heads 0 wide do not divide", LoadOptions(head_channels=0))


def test_what_is_assumed_is_said(checkpoint_of):
    config = small_config("v1", head_channels=16, image_encoder=ImageEncoderConfig(28, 14, 80, 1, 80, 64))
    loaded = load(checkpoint_of(small_state(config)), LoadOptions(head_channels=16))
    assert loaded.notices[2:] == (
        "no file says how wide the attention heads of the image encoder are; assuming the published 80",
        "the checkpoint does not say how its latents are scaled; assuming the published 0.18215",
    )
    wide = small_config("v1", channel_mult=(2, 2, 2, 2), head_channels=64)
    said = load(checkpoint_of(small_state(wide), metadata={"clip": '{"head_width": 16}'}), OPTIONS).notices
    assert any(
        "U-Net's attention heads are; assuming the published 64 (say otherwise with --head-channels)" in notice
        for notice in said
    )


@pytest.mark.parametrize("value", ['"four"', "true", "-3", "0", "[4]", "16.5"])
def test_metadata_that_is_no_number(checkpoint_of, value, refused):
    config = small_config("v1")
    checkpoint = checkpoint_of(small_state(config), config, {"num_head_channels": value})
    refused(checkpoint, r"its metadata states .* as num_head_channels, expected a (positive|whole) number: correct it")


def test_image_encoder_heads_that_do_not_divide(checkpoint_of, refused):
    config = small_config("v1")
    refused(
        checkpoint_of(small_state(config), metadata={"num_head_channels": "16"}),
        r"heads 80 wide do not divide the image encoder's width of 32",
    )


@pytest.mark.parametrize(
    ("generation", "gone", "match"),
    [
        (
            "v1",
            f"{UNET}middle_block.",
            r"missing: model\.diffusion_model\.middle_block\.0\..* and \d+ more.*\(recognised",
        ),
        ("v1", f"{UNET}input_blocks.7.", r"blocks per level are \[2, 2, 1, 2\], expected 2 in each of 4"),
        ("v1", "betas", "betas is missing"),
        ("v1", "alphas_cumprod", "missing: alphas_cumprod"),
        ("v1", "first_stage_model.encoder.conv_in.", r"encoder\.conv_in\.weight is missing.*checkpoint complete\?"),
        ("v1", "first_stage_model.decoder.up.2.", "missing: first_stage_model.decoder.up.2"),
        ("v1", "first_stage_model.", r"holds nothing under first_stage_model\.;.* give the whole checkpoint"),
        ("v1", UNET, r"ColorizeDiffusion v1 by .* holds nothing under model\.diffusion_model\."),
        ("v2", "bg_encoder.", r"ColorizeDiffusion v2 by style_encoder\..*holds nothing under bg_encoder\."),
        ("v2", f"{UNET}warp_modules.3.", r"warp modules are numbered \[0, 1, 2, 4, .*\], expected all from 0 to 11"),
        ("v2", f"{UNET}style_modules.", r"missing: model\.diffusion_model\.style_modules\.0.*v2 by bg_encoder"),
        ("v2", f"{CROSS}to_q.lora_up_fg.", r"missing: .*to_q\.lora_up_fg\.weight"),
        ("v1.5", "thresh_embedder.", r"v1\.5 by transformer\..*holds nothing under thresh_embedder\."),
        ("v1.5", "transformer.layers.0.2.to_k.", r"missing: transformer\.layers\.0\.2\.to_k\.weight"),
    ],
)
def test_half_a_checkpoint(checkpoint_of, generation, gone, match, refused):
    config = small_config(generation)
    state = small_state(config)
    cut = without(state, gone)
    assert len(cut) < len(state)
    refused(checkpoint_of(cut, config), match)


def test_checkpoint_of_another_generation(checkpoint_of, refused):
    """v2's own networks around a v1 U-Net, as a file with partly converted keys would have."""
    config = small_config("v1")
    v2 = small_state(small_config("v2"))
    mixed = small_state(config) | {key: v2[key] for key in v2 if key.startswith(("bg_encoder.", "style_encoder."))}
    said = refused(checkpoint_of(mixed, config), r"warp modules are numbered \[\], expected all from 0 to 11")
    assert "recognised as ColorizeDiffusion v2 by bg_encoder.*, style_encoder.*" in said


def test_checkpoint_of_two_generations(checkpoint_of, refused):
    config = small_config("v2")
    both = small_state(config) | without(small_state(small_config("v1.5")), "model.", "first", "control", "cond")
    refused(checkpoint_of(both, config), r"two generations .*v1\.5 \(transformer\.embedding.*\) and v2 \(bg_encoder")


def test_checkpoint_with_unknown_keys(checkpoint_of, refused):
    config = small_config("v1")
    refused(checkpoint_of(small_state(config) | {"proj.weight": torch.zeros(1)}, config), r"unknown: proj\.weight")


@pytest.mark.parametrize("generation", ["v1.5", "v2"])
def test_lora_of_the_wrong_rank(checkpoint_of, generation, refused):
    config = small_config(generation)
    state = small_state(config)
    down, up = f"{CROSS}to_q.lora_down_fg.weight", f"{CROSS}to_q.lora_up_fg.weight"
    state[down], state[up] = torch.zeros(7, 64), torch.zeros(64, 7)
    said = refused(checkpoint_of(state, config), "mis-shaped")
    assert f"{down} (7, 64) instead of (2, 64)" in said
    assert f"{up} (64, 7) instead of (64, 2)" in said


@pytest.mark.parametrize("generation", ["v1.5", "v2"])
def test_loras_missing_altogether(checkpoint_of, generation, refused):
    config = small_config(generation)
    state = {key: tensor for key, tensor in small_state(config).items() if ".lora_" not in key}
    refused(checkpoint_of(state, config), r"missing: .*lora_down_bg\.weight.* and \d+ more")


def test_widths_without_groups(refused):
    config = small_config("v1")
    with torch.device("meta"):
        state = ColorizeDiffusion(config).state_dict()
        state[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(33, 4, 3, 3)
    refused(
        Checkpoint("x", "", state, stated_by(config)), r"widths of the levels .* expected multiples of 32, and of 33"
    )


def test_prefixes_of_training_wrappers_are_taken_off(checkpoint_of):
    config = small_config("v1")
    wrapped = {f"module.{key}": tensor for key, tensor in small_state(config).items()}
    assert load(checkpoint_of(wrapped, config), OPTIONS).network.config == config


def test_metadata_is_json(checkpoint_of):
    config = small_config("v1")
    checkpoint = checkpoint_of(
        small_state(config), metadata={"num_head_channels": "16", "clip": json.dumps({"head_width": 16})}
    )
    assert config_from_checkpoint(checkpoint, OPTIONS) == config

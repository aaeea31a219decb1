import pytest
import torch

from saishiki.models import CheckpointError, read_checkpoint
from saishiki.models.animediffusion import CONFIGS, config_from_checkpoint, load, matches
from saishiki.models.animediffusion.loading import stated_heads
from tests.models.conftest import random_network, small_config

X = torch.linspace(-1, 1, 7 * 64).reshape(1, 7, 8, 8)


def config_of(path, attention_head=None):
    return config_from_checkpoint(read_checkpoint(path), attention_head=attention_head)


def heads(number):
    return {"unet": {"attention_head": number}}


@pytest.mark.parametrize(
    "config",
    [
        small_config(n_res_blocks=1),
        small_config(n_res_blocks=2, channel_mult=(1, 2)),
        small_config(n_res_blocks=3, channel_mult=(1, 2), attention_head=8),
        small_config(channel_mult=(1, 2, 2, 2), channel_base=32),
        small_config(cbam=True, channel_mult=(1, 1)),
        small_config(timesteps=50),
        small_config(channel_in=9, channel_out=4),
    ],
    ids=["1-block", "2-blocks", "3-blocks-8-heads", "4-levels-base-32", "cbam", "T-50", "9-channels-in"],
)
def test_config_from_checkpoint_infers_everything(saved, config):
    network = random_network(config)
    checkpoint = read_checkpoint(saved(network.state_dict(), config=heads(config.attention_head)))
    assert config_from_checkpoint(checkpoint, attention_head=None) == config
    loaded = load(checkpoint, config)
    assert not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items())
    if config.channel_in == 7:
        t = torch.tensor([20])
        with torch.inference_mode():
            torch.testing.assert_close(loaded.denoise_fn(X, t), network.denoise_fn(X, t), atol=1e-5, rtol=0)


def test_config_from_checkpoint_published(saved):
    """From the shapes alone: the tensors of the full network are never allocated."""
    from saishiki.models.animediffusion import AnimeDiffusion
    from saishiki.models.checkpoints import Checkpoint

    with torch.device("meta"):
        state = AnimeDiffusion(CONFIGS["published"]).state_dict()
    assert config_from_checkpoint(Checkpoint("x", "", state, {}), attention_head=None) == CONFIGS["published"]


@pytest.mark.parametrize(
    ("argument", "metadata", "expected"),
    [(None, None, 4), (None, 8, 8), (2, 8, 2), (16, None, 16)],
    ids=["published", "metadata", "argument-over-metadata", "argument"],
)
def test_attention_heads_come_from(saved, small_state, argument, metadata, expected):
    path = saved(small_state, config=None if metadata is None else heads(metadata))
    assert config_of(path, argument).attention_head == expected


@pytest.mark.parametrize("number", [3, 0, -4, 128, 10**12])
@pytest.mark.parametrize("source", ["argument", "metadata"])
def test_attention_heads_that_do_not_divide(saved, small_state, number, source):
    path = saved(small_state, config=heads(number) if source == "metadata" else None)
    with pytest.raises(
        CheckpointError, match=rf"{number} attention heads do not divide the bottleneck's 64 channels; s"
    ):
        config_of(path, number if source == "argument" else None)


@pytest.mark.parametrize("nonsense", ["four", 4.0, None, True, [4]])
def test_attention_heads_nonsense_in_the_metadata(saved, small_state, nonsense):
    path = saved(small_state, config=heads(nonsense))
    with pytest.raises(CheckpointError, match=r"its metadata states .* as attention_head, expected a whole number"):
        config_of(path)
    assert config_of(path, 4).attention_head == 4


@pytest.mark.parametrize("config", [[], {}, {"unet": None}, {"unet": {}}, "{", 7])
def test_stated_heads_of_other_metadata(saved, small_state, config):
    assert stated_heads(read_checkpoint(saved(small_state, config=config))) is None


def test_stated_heads_of_metadata_that_is_no_json(tmp_path, small_state):
    from safetensors.torch import save_file

    save_file(small_state, tmp_path / "m.safetensors", metadata={"config": "heads: 4"})
    assert stated_heads(read_checkpoint(tmp_path / "m.safetensors")) is None


def test_load_misses_a_key(saved, small_state):
    del small_state["denoise_fn.bottom_block.1.attention.1.bias"]
    checkpoint = read_checkpoint(saved(small_state))
    with pytest.raises(CheckpointError, match=r"missing: denoise_fn\.bottom_block\.1\.attention\.1\.bias; save"):
        load(checkpoint, config_from_checkpoint(checkpoint, attention_head=4))


def test_load_names_five_missing_and_five_unknown_keys(saved, small_state):
    renamed = {key.replace("decoder_block.0.", "decoder.0."): tensor for key, tensor in small_state.items()}
    checkpoint = read_checkpoint(saved(renamed))
    with pytest.raises(CheckpointError) as error:
        load(checkpoint, config_from_checkpoint(checkpoint, attention_head=4))
    message = str(error.value)
    assert message.count("denoise_fn.decoder_block.0.") == 5
    assert message.count("denoise_fn.decoder.0.") == 5
    assert message.count("and 7 more") == 2


def test_load_wrong_shape(saved, small_state):
    small_state["denoise_fn.output.2.bias"] = torch.ones(5)
    checkpoint = read_checkpoint(saved(small_state))
    with pytest.raises(CheckpointError, match=r"mis-shaped: denoise_fn\.output\.2\.bias \(5,\) instead of \(3,\)"):
        load(checkpoint, config_from_checkpoint(checkpoint, attention_head=4))


def test_load_integers(saved, small_state):
    small_state["denoise_fn.output.2.weight"] = torch.ones(3, 64, 1, 1, dtype=torch.int64)
    checkpoint = read_checkpoint(saved(small_state))
    with pytest.raises(CheckpointError, match=r"not fp32, fp16, bf16 or fp64: denoise_fn\.output\.2\.weight int64"):
        load(checkpoint, config_from_checkpoint(checkpoint, attention_head=4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_load_half_checkpoint_as_fp32(saved, small_state, dtype):
    half = {key: tensor.to(dtype) for key, tensor in small_state.items()}
    checkpoint = read_checkpoint(saved(half))
    network = load(checkpoint, config_from_checkpoint(checkpoint, attention_head=4))
    for key, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, half[key].to(torch.float32)), key


def without(prefix):
    return lambda state: {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}


def with_tensor(key, *shape):
    return lambda state: state | {key: torch.ones(shape)}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without("denoise_fn.output."), r"denoise_fn\.output\.2\.weight is missing"),
        (without("denoise_fn.encoder_block."), r"encoder blocks numbered \[\]: expected equally many per level"),
        (with_tensor("denoise_fn.encoder_block.2.conv2.3.weight", 65, 1), r"level widths \[64, 65\]: expected multip"),
        (with_tensor("denoise_fn.encoder_block.2.conv2.3.weight"), r"index out of range"),
        (with_tensor("denoise_fn.encoder_block.1.x", 1), None),
        (with_tensor("denoise_fn.input.0.weight", 48, 7, 1, 1), r"base width 48 .*: expected multiples of 32"),
        (with_tensor("denoise_fn.input.0.weight", 7), r"not enough values to unpack"),
        (with_tensor("gammas"), r"index out of range"),
    ],
)
def test_config_from_checkpoint_of_tensors_that_make_no_unet(saved, small_state, change, why):
    checkpoint = read_checkpoint(saved(change(small_state)))
    assert matches(checkpoint.shapes)
    expected = rf"do not describe a U-Net \(.*{why}.*is the checkpoint complete" if why else "missing: .* unknown: "
    with pytest.raises(CheckpointError, match=expected):
        load(checkpoint, config_from_checkpoint(checkpoint, attention_head=4))


def test_a_file_that_claims_a_huge_network_allocates_nothing(saved, small_state):
    small_state["denoise_fn.input.0.weight"] = torch.ones(32 * 4000, 1, 1, 1)
    small_state["denoise_fn.encoder_block.0.conv2.3.weight"] = torch.ones(32 * 4000, 1, 1, 1)
    checkpoint = read_checkpoint(saved(small_state))
    with pytest.raises(CheckpointError, match="mis-shaped"):
        load(checkpoint, config_from_checkpoint(checkpoint, attention_head=4))


def test_matches_needs_the_schedule(small_state):
    shapes = {key: tuple(tensor.shape) for key, tensor in small_state.items()}
    assert matches(shapes)
    assert not matches({key: shape for key, shape in shapes.items() if key != "gammas"})

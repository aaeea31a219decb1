import json
import math

import pytest
import torch
import torch.nn.functional as F

from saishiki.models.animediffusion import CONFIGS, AnimeDiffusion
from saishiki.models.animediffusion.network import CBAM, ResidualBlock, SelfAttention, UpsamplingBlock, sinusoid
from tests.conformance import FOLDER
from tests.models.conftest import random_network, small_config

KEYS = FOLDER / "animediffusion" / "keys.json"


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.skipif(not KEYS.is_file(), reason=f"needs the published key table, {KEYS}; set SAISHIKI_CONFORMANCE")
def test_state_dict_has_the_published_keys_and_shapes():
    with torch.device("meta"):
        state = AnimeDiffusion(CONFIGS["published"]).state_dict()
    published = {key: tuple(shape) for key, (_, shape) in json.loads(KEYS.read_text())["full"].items()}
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == published


def test_published_parameter_count():
    with torch.device("meta"):
        network = AnimeDiffusion(CONFIGS["published"])
    assert sum(parameter.numel() for parameter in network.parameters()) == 52_301_251


def test_sinusoid_is_cosines_then_sines_with_period_1000():
    got = sinusoid(torch.tensor([0, 1, 901]), 6)
    for row, t in enumerate((0, 1, 901)):
        angles = [t * 1000 ** (-i / 3) for i in range(3)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert got[row].tolist() == pytest.approx(expected, abs=2e-4)


def test_sinusoid_odd_width_gets_a_zero():
    got = sinusoid(torch.tensor([5]), 7)
    assert got.shape == (1, 7)
    assert torch.equal(got[:, :6], sinusoid(torch.tensor([5]), 6))
    assert got[0, 6] == 0


def cbam_by_hand(x, state):
    """The same, pixel by pixel and channel by channel, from the paper's formulas."""
    hidden, restore = (state[f"channel_attention.fc.{i}.weight"].double() for i in (0, 2))
    x = x.double()
    for image in x:
        gate = torch.zeros(len(image), dtype=torch.float64)
        for pooled in (torch.stack([c.max() for c in image]), torch.stack([c.mean() for c in image])):
            gate += restore @ (hidden @ pooled).clamp(min=0)
        image *= (1 / (1 + torch.exp(-gate)))[:, None, None]
        maps = torch.stack([image.max(dim=0).values, image.mean(dim=0)])
        padded = F.pad(maps, (3, 3, 3, 3))
        kernel = state["spatial_attention.conv.weight"].double()[0]
        for y in range(image.shape[1]):
            for column in range(image.shape[2]):
                window = padded[:, y : y + 7, column : column + 7]
                image[:, y, column] *= 1 / (1 + torch.exp(-(window * kernel).sum()))
    return x


def test_cbam_equals_a_plain_computation():
    torch.manual_seed(1)
    cbam, x = CBAM(32), rand(2, 32, 5, 6)
    expected = cbam_by_hand(x.clone(), cbam.state_dict())
    torch.testing.assert_close(cbam(x).double(), expected, atol=1e-6, rtol=1e-5)


def test_self_attention_equals_a_plain_computation():
    torch.manual_seed(2)
    block, x = SelfAttention(64, 2), rand(2, 64, 3, 5) + 3
    norm, qkv = block.attention
    h = F.group_norm(x.flatten(2).double(), 32, norm.weight.double(), norm.bias.double())
    h = torch.einsum("oc,bct->bot", qkv.weight.double()[:, :, 0], h) + qkv.bias.double()[None, :, None]
    q, k, v = h[:, :64], h[:, 64:128], h[:, 128:]
    expected = x.flatten(2).double().clone()
    for head in (slice(0, 32), slice(32, 64)):
        scores = torch.einsum("bct,bcs->bts", q[:, head], k[:, head]) / math.sqrt(32)
        expected[:, head] += torch.einsum("bts,bcs->bct", scores.softmax(-1), v[:, head])
    torch.testing.assert_close(block(x).flatten(2).double(), expected, atol=2e-6, rtol=1e-5)


def test_residual_block_adds_time_before_the_second_norm():
    torch.manual_seed(3)
    block, x, time = ResidualBlock(32, 64, 8, cbam=False), rand(1, 32, 4, 4), rand(1, 64, seed=1)
    h = block.conv1(x) + time[:, :, None, None]
    torch.testing.assert_close(block(x, time), block.skip_connection(x) + block.conv2(h))
    assert not torch.allclose(block(x, time), block(x, None), atol=1e-3)


def test_upsampling_block_doubles_by_repeating():
    torch.manual_seed(4)
    residual = ResidualBlock(32, 32, 8, cbam=False)
    x = rand(1, 32, 2, 3)
    expected = residual(x, None).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(UpsamplingBlock(residual)(x, None), expected)


@pytest.mark.parametrize(("mult", "stride"), [((1,), 1), ((1, 2), 2), ((1, 2, 4, 8), 8)])
def test_stride(mult, stride):
    assert small_config(channel_mult=mult).stride == stride


@pytest.mark.parametrize("cbam", [False, True])
def test_every_single_tensor_changes_the_output(cbam):
    """Every key is really used: perturbing any one of them is seen in what the network predicts."""
    network = random_network(small_config(channel_mult=(1, 1), cbam=cbam))
    x, t = rand(1, 7, 8, 8), torch.tensor([500])
    with torch.inference_mode():
        plain = network.denoise_fn(x, t)
        for name, parameter in network.denoise_fn.named_parameters():
            original = parameter.detach().clone()
            parameter.add_(0.1 * rand(*original.shape, seed=9))
            assert (network.denoise_fn(x, t) - plain).abs().max() > 1e-5, name
            parameter.copy_(original)
        assert torch.equal(network.denoise_fn(x, t), plain)


def test_stem_output_is_not_a_skip(small_network):
    """Its place on the stack is never popped: the decoder's widths are those of the residual blocks alone."""
    network = random_network(small_config(n_res_blocks=2))
    assert [block.skip_connection.weight.shape[1] for block in network.denoise_fn.decoder_block] == [128, 128]

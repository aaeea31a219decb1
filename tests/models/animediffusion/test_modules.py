import pytest
import torch

from saishiki.models.animediffusion import Denoiser, TimeProjection, modules, signatures
from tests.models.animediffusion.test_network import rand
from tests.models.conftest import random_network, small_config

CONFIGS = [
    pytest.param(small_config(), id="one-level"),
    pytest.param(small_config(channel_mult=(1, 2), n_res_blocks=2, attention_head=8), id="two-levels"),
    pytest.param(small_config(channel_mult=(1, 2), cbam=True), id="cbam"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_time_projection_and_denoiser_equal_denoise_fn(config):
    network = random_network(config)
    noisy, condition, t = rand(3, 3, 8, 12), rand(3, 4, 8, 12, seed=1), torch.tensor([901, 501, 1])
    with torch.inference_mode():
        expected = network.denoise_fn(torch.cat([noisy, condition], dim=1), t)
        time = TimeProjection(network.denoise_fn)(t.to(torch.float32))
        got = Denoiser(network.denoise_fn)(noisy, condition, time)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert expected.std() > 0.01


@pytest.mark.parametrize("config", CONFIGS)
def test_all_zero_time_equals_no_time(config):
    network = random_network(config)
    x = rand(2, 7, 8, 8)
    with torch.inference_mode():
        untimed, timed = network.denoise_fn(x), network.denoise_fn(x, torch.tensor([500, 500]))
        width = TimeProjection(network.denoise_fn)(torch.zeros(1)).shape[1]
        zero = Denoiser(network.denoise_fn)(x[:, :3], x[:, 3:], torch.zeros(2, width))
    torch.testing.assert_close(zero, untimed, atol=1e-6, rtol=0)
    assert (timed - untimed).abs().max() > 1e-2


@pytest.mark.parametrize("config", CONFIGS)
def test_signatures_are_the_shapes_of_the_modules(config):
    network = random_network(config)
    sizes = {"batch": 2, "height": 8, "width": 12, "steps": 3}
    for name, module in modules(network).items():
        signature = signatures(config)[name]
        inputs = {spec.name: torch.zeros(spec.shape(sizes)) for spec in signature.inputs}
        (spec,) = signature.outputs
        with torch.inference_mode():
            assert module(**inputs).shape == spec.shape(sizes)


def test_signatures_of_the_denoiser():
    denoiser = signatures(small_config(channel_mult=(1, 2)))["denoiser"]
    # Residual blocks: two in the encoder, two in the bottleneck, three in the decoder.
    width = 64 + 128 + 2 * 128 + 128 + 128 + 64
    assert [str(spec) for spec in denoiser.inputs + denoiser.outputs] == [
        "noisy: float32 (batch, 3, height, width)",
        "condition: float32 (batch, 4, height, width)",
        f"time: float32 (batch, {width})",
        "eps: float32 (batch, 3, height, width)",
    ]
    assert denoiser.multiples == {"height": 2, "width": 2}

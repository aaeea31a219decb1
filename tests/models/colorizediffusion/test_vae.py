import json

import pytest
import torch
from torch import nn

from saishiki.models.colorizediffusion import CONFIGS, VAEConfig
from saishiki.models.colorizediffusion.vae import (
    LOGVAR_RANGE,
    VAE,
    VAEDecoder,
    VAEEncoder,
    autoencoder,
    sample_latent,
)
from tests.conformance import FOLDER

CONFIG = VAEConfig(32, (1, 2, 1), 1, 4, 0.5)


def random_vae(config: VAEConfig = CONFIG) -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VAE(config).eval().requires_grad_(False)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("generation", ["v1", "v1.5", "v2"])
def test_published_names_are_the_published_ones(generation):
    path = FOLDER / f"colorizediffusion-{generation}" / "keys.json"
    if not path.is_file():
        pytest.skip(f"needs the key table {path}")
    prefix = "first_stage_model."
    full = json.loads(path.read_text())["full"]
    want = {key.removeprefix(prefix): tuple(shape) for key, (_, shape) in full.items() if key.startswith(prefix)}
    with torch.device("meta"):
        state = VAE(CONFIGS[generation].vae).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == want


def test_published_names_by_hand():
    names = random_vae().published_names()
    assert names["encoder.down_blocks.1.resnets.0.conv_shortcut.weight"] == "encoder.down.1.block.0.nin_shortcut.weight"
    assert names["encoder.down_blocks.0.downsamplers.0.conv.bias"] == "encoder.down.0.downsample.conv.bias"
    # diffusers counts decoder levels from the deepest, published names from the finest.
    assert names["decoder.up_blocks.0.resnets.1.conv1.weight"] == "decoder.up.2.block.1.conv1.weight"
    assert names["decoder.up_blocks.0.upsamplers.0.conv.bias"] == "decoder.up.2.upsample.conv.bias"
    assert names["encoder.mid_block.attentions.0.to_out.0.weight"] == "encoder.mid.attn_1.proj_out.weight"
    assert names["decoder.conv_norm_out.weight"] == "decoder.norm_out.weight"
    assert len(set(names.values())) == len(names) == len(list(random_vae().parameters()))


def test_state_goes_there_and_back():
    vae = random_vae()
    state = vae.state_dict()
    assert state["decoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)
    with torch.device("meta"):
        other = VAE(CONFIG)
    other.load_state_dict(state, assign=True)
    for (name, ours), (_, theirs) in zip(vae.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_state_goes_there_and_back_inside_another_module():
    outer = nn.ModuleDict({"first_stage_model": random_vae()})
    state = outer.state_dict()
    assert "first_stage_model.encoder.mid.attn_1.norm.weight" in state
    state["first_stage_model.encoder.mid.attn_1.k.weight"] = state["first_stage_model.encoder.mid.attn_1.k.weight"] + 1
    other = nn.ModuleDict({"first_stage_model": VAE(CONFIG)})
    other.load_state_dict(state)
    key = "first_stage_model.encoder.mid_block.attentions.0.to_k.weight"
    assert torch.equal(dict(other.named_parameters())[key], dict(outer.named_parameters())[key] + 1)


def test_state_with_a_key_missing_does_not_load():
    state = random_vae().state_dict()
    del state["decoder.norm_out.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        VAE(CONFIG).load_state_dict(state)


def test_norms_have_the_published_epsilon():
    norms = [module for module in random_vae().modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) > 20
    assert {(norm.eps, norm.num_groups) for norm in norms} == {(1e-6, 32)}


def test_encoder_is_diffusers_own_with_the_logvar_clamped():
    vae = random_vae()
    theirs = autoencoder(CONFIG).eval()
    theirs.load_state_dict({name: parameter.data for name, parameter in vae.named_parameters()})
    image = images(2, 3, 24, 16)
    with torch.inference_mode():
        mean, logvar = VAEEncoder(vae)(image)
        posterior = theirs.encode(image).latent_dist
    assert mean.shape == logvar.shape == (2, 4, 6, 4)
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close(logvar, posterior.logvar)


@pytest.mark.parametrize(("bias", "bound"), [(100.0, LOGVAR_RANGE[1]), (-100.0, LOGVAR_RANGE[0])])
def test_encoder_clamps_the_logvar(bias, bound):
    vae = random_vae()
    vae.quant_conv.bias[4:] = bias
    with torch.inference_mode():
        _, logvar = VAEEncoder(vae)(images(1, 3, 8, 8))
    assert (logvar == bound).all()


def test_decoder_is_diffusers_own_of_the_unscaled_latent():
    vae, z = random_vae(), images(2, 4, 6, 4)
    theirs = autoencoder(CONFIG).eval()
    theirs.load_state_dict({name: parameter.data for name, parameter in vae.named_parameters()})
    with torch.inference_mode():
        image = VAEDecoder(vae)(z)
        torch.testing.assert_close(image, theirs.decode(z / 0.5).sample)
        assert not torch.allclose(image, theirs.decode(z).sample, atol=1e-3)
    assert image.shape == (2, 3, 24, 16)


def test_sample_latent():
    mean, logvar, noise = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]), torch.tensor([0.5, -1.0])
    want = torch.tensor([0.1 * 1.5, 0.1 * (2 - torch.e)])
    torch.testing.assert_close(sample_latent(mean, logvar, noise, scale_factor=0.1), want)

import pytest
import torch

from saishiki.models import CheckpointError, LoadOptions, read_checkpoint
from saishiki.models.animediffusion import ANIMEDIFFUSION, CONFIGS, AnimeDiffusion
from saishiki.models.animediffusion.family import LoadedAnimeDiffusion
from saishiki.runtime.schedule import BUFFERS
from tests.models.animediffusion.test_network import rand
from tests.models.conftest import random_network, small_config


def load(path, **options):
    return ANIMEDIFFUSION.load(read_checkpoint(path), LoadOptions(**options))


def test_load_notices_assumed_heads(saved, small_state):
    (notice,) = load(saved(small_state)).notices
    assert notice == (
        "the checkpoint does not say how many attention heads it has; assuming the published 4 "
        "(say otherwise with --attention-heads)"
    )


def test_load_without_notice_where_the_heads_are_known(saved, small_state):
    assert load(saved(small_state), attention_head=4).notices == ()
    assert load(saved(small_state, config={"unet": {"attention_head": 2}})).notices == ()


def test_load_the_number_of_heads_matters(saved, small_state):
    path, x = saved(small_state), rand(1, 7, 8, 8)
    with torch.inference_mode():
        two, four = (load(path, attention_head=n).network.denoise_fn(x) for n in (2, 4))
    assert (two - four).abs().max() > 1e-4


@pytest.mark.parametrize(("timesteps", "refused"), [(1, True), (10, True), (11, False)])
def test_load_schedule_shorter_than_the_sampler(saved, small_state, timesteps, refused):
    path = saved({key: tensor[:timesteps] if key in BUFFERS else tensor for key, tensor in small_state.items()})
    if refused:
        with pytest.raises(CheckpointError, match=rf"its schedule has {timesteps} timesteps, too few for the publishe"):
            load(path)
    else:
        assert load(path).config["timesteps"] == timesteps


def test_variant_and_config(small_network):
    assert LoadedAnimeDiffusion(small_network, ()).variant == "custom"
    with torch.device("meta"):
        published = AnimeDiffusion(CONFIGS["published"])
    loaded = LoadedAnimeDiffusion(published, ())
    assert loaded.variant == "published"
    assert loaded.config["channel_mult"] == (1, 2, 4, 8)


def test_schedule_is_what_is_stored(saved, small_state):
    small_state["gammas"][3] = 0.25
    schedule = load(saved(small_state)).schedule
    assert len(schedule) == 7
    assert schedule["gammas"][3] == 0.25
    assert schedule["gammas"].dtype == "float32"


def test_probe_is_the_reference_noised_to_published_timesteps(small_network):
    model, sketch, reference = LoadedAnimeDiffusion(small_network, ()), rand(5, 1, 8, 8), rand(5, 3, 8, 8, seed=1)
    with torch.inference_mode():
        inputs = model.probe("denoiser", {"batch": 5, "height": 8, "width": 8}, sketch, reference)
        expected = small_network.denoise_fn.time_projections(torch.tensor([901, 501, 101, 1, 901]))
    assert torch.equal(inputs["condition"], torch.cat([sketch, reference], dim=1))
    assert torch.equal(inputs["time"], expected)
    # At t = 1 next to nothing is noise, at 901 nearly everything.
    assert (inputs["noisy"][3] - reference[3]).abs().max() < 0.02
    assert (inputs["noisy"][0] - reference[0]).abs().max() > 0.5


def test_probe_of_the_time_projection_spans_the_schedule(small_network):
    model = LoadedAnimeDiffusion(small_network, ())
    nothing = torch.zeros(0)
    assert model.probe("time_projection", {"steps": 4}, nothing, nothing)["t"].tolist() == [0, 333, 666, 999]
    assert model.probe("time_projection", {"steps": 1}, nothing, nothing)["t"].tolist() == [0]


def test_probe_of_a_short_schedule(saved):
    model = load(saved(random_network(small_config(timesteps=50)).state_dict()))
    inputs = model.probe("denoiser", {"batch": 4, "height": 8, "width": 8}, rand(4, 1, 8, 8), rand(4, 3, 8, 8))
    expected = model.network.denoise_fn.time_projections(torch.tensor([49, 49, 49, 1]))
    assert torch.equal(inputs["time"], expected)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 10])
def test_sample_agrees_with_the_runtimes_ddim(small_network, eta, steps):
    """Two implementations that share no code: the reference's and the runtime's."""
    from saishiki.runtime.samplers import sample_ddim
    from saishiki.runtime.schedule import DiffusionSchedule, ddim_schedule

    model = LoadedAnimeDiffusion(small_network, ())
    sketch, reference, start = rand(2, 1, 8, 8), rand(2, 3, 8, 8, seed=1), rand(2, 3, 8, 8, seed=2)
    noise = rand(steps, 2, 3, 8, 8, seed=3)
    schedule = ddim_schedule(DiffusionSchedule(model.schedule), steps=steps, eta=eta)
    states = []

    def denoise(x, k):
        t = torch.full((2,), int(schedule.t[k]))
        return small_network.denoise_fn(torch.cat([x, sketch, reference], dim=1), t)

    with torch.inference_mode():
        got = model.sample(sketch, reference, start, noise, eta=eta)
        sample_ddim(denoise, start, schedule, noise=noise, on_step=lambda _, x: states.append(x))
    assert got.shape == (steps, 2, 3, 8, 8)
    torch.testing.assert_close(got, torch.stack(states), atol=2e-5, rtol=0)


def test_sample_with_a_stand_in(small_network):
    model = LoadedAnimeDiffusion(small_network, ())
    arguments = rand(1, 1, 8, 8), rand(1, 3, 8, 8), rand(1, 3, 8, 8, seed=1), rand(2, 1, 3, 8, 8, seed=2)
    with torch.inference_mode():
        whole = model.sample(*arguments, eta=1.0)
        split = model.sample(*arguments, eta=1.0, denoiser=model.modules["denoiser"])
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=0)

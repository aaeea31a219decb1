import pytest
import torch

from saishiki.models import Checkpoint, CheckpointError, LoadOptions
from saishiki.models.colorizediffusion import prediction
from saishiki.models.colorizediffusion.prediction import (
    NEEDED_MARGIN,
    Measurement,
    correlation,
    find_prediction,
    measure,
    predict_blank,
    stated_prediction,
)
from tests.models.colorizediffusion.small import small_config, small_network

SIGNAL, DEVIATION = 0.0683, 0.9977
"""Of Stable Diffusion's schedule at timestep 999."""


def smooth_picture(x):
    """What a v-network takes the image to be: it varies slowly, and has nothing of the noise."""
    ramp = torch.linspace(-1, 1, x.shape[-1])
    return (ramp[:, None] + ramp).expand_as(x)


def eps_network(x, t):
    assert (t == 999).all()
    return 0.97 * x + 0.05 * smooth_picture(x)


def v_network(x, t):
    return SIGNAL * x - DEVIATION * smooth_picture(x)


def unclear_network(x, t):
    return 0.5 * x + 0.6 * smooth_picture(x)


def random_network(x, t):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("predict", "expected", "least_margin"),
    [(eps_network, "eps", 0.45), (v_network, "v", 0.35), (random_network, "v", 0.4)],
)
def test_measure_tells_eps_from_v(predict, expected, least_margin):
    measured = measure(predict, 4, 999)
    assert measured.prediction == expected
    assert measured.margin > max(least_margin, NEEDED_MARGIN)
    assert f"correlates {measured.lowest:.3f} to {measured.highest:.3f} with x_T" in str(measured)
    assert f"a margin of {measured.margin:.3f} " in str(measured)


def test_measure_is_repeatable():
    assert measure(v_network, 4, 999) == measure(v_network, 4, 999)


def test_measure_unclear():
    assert measure(unclear_network, 4, 999).margin < NEEDED_MARGIN


@pytest.mark.parametrize(
    ("lowest", "highest", "expected", "margin"),
    [
        (0.9, 1.0, "eps", 0.4),
        (0.3, 1.0, "eps", -0.2),
        (-0.1, 0.05, "v", 0.4),
        (-0.9, -0.8, "v", -0.4),
        (0.0, 0.0, "v", 0.5),
    ],
    ids=["eps", "eps-but-one-noise", "v", "inverted", "silent"],
)
def test_margin_is_that_of_the_worst_noise(lowest, highest, expected, margin):
    measured = Measurement(lowest, highest)
    assert measured.prediction == expected
    assert measured.margin == pytest.approx(margin)


def test_correlation():
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 1.0, 4.0, 3.0])
    assert correlation(a, b) == pytest.approx(0.6)
    assert correlation(a, 7 - 3 * a) == pytest.approx(-1)
    assert correlation(a, torch.full((4,), 5.0)) == 0


def checkpoint(**metadata):
    return Checkpoint("model-eps.safetensors", "", {}, metadata)


def found(predict, options=None, *, monkeypatch, **metadata):
    """What is found of a network that predicts like this."""
    monkeypatch.setattr(prediction, "predict_blank", lambda network, x, t: predict(x, t))
    network = small_network(small_config("v1", timesteps=1000))
    return find_prediction(checkpoint(**metadata), options or LoadOptions(), network)


@pytest.mark.parametrize(("predict", "expected"), [(eps_network, "eps"), (v_network, "v")])
def test_find_prediction_measures(predict, expected, monkeypatch):
    """Whatever the file is called: this one has eps in its name."""
    kind, words = found(predict, monkeypatch=monkeypatch)
    assert kind == expected
    assert f"({expected}), as measured: at the noisiest timestep its output correlates" in words


@pytest.mark.parametrize("predict", [unclear_network, lambda x, t: x * torch.nan])
def test_find_prediction_asks_where_it_is_unclear(predict, monkeypatch):
    with pytest.raises(CheckpointError, match=r"correlates .* say which it was trained with: --prediction eps or"):
        found(predict, monkeypatch=monkeypatch)


def test_find_prediction_takes_the_metadatas_word(monkeypatch):
    assert found(eps_network, monkeypatch=monkeypatch, prediction_type='"v_prediction"') == (
        "v",
        "the U-Net predicts velocity (v), as the checkpoint's metadata states",
    )


def test_find_prediction_takes_the_users_word_first(monkeypatch):
    kind, words = found(v_network, LoadOptions(prediction="eps"), monkeypatch=monkeypatch, parameterization="v")
    assert (kind, words) == ("eps", "the U-Net predicts noise (eps), as told, though the metadata states v")
    kind, words = found(v_network, LoadOptions(prediction="eps"), monkeypatch=monkeypatch, parameterization="eps")
    assert words == "the U-Net predicts noise (eps), as told"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"prediction_type": "epsilon"}, "eps"),
        ({"prediction_type": '"v_prediction"'}, "v"),
        ({"parameterization": "V"}, "v"),
        ({"parameterization": "eps", "prediction_type": "epsilon"}, "eps"),
    ],
)
def test_stated_prediction(metadata, expected):
    assert stated_prediction(checkpoint(**metadata)) == expected


@pytest.mark.parametrize(
    "metadata",
    [{"prediction_type": "sample"}, {"parameterization": "eps", "prediction_type": "v"}, {"parameterization": "1"}],
)
def test_stated_prediction_that_is_neither(metadata):
    with pytest.raises(CheckpointError, match=r"its metadata states .* expected eps or v: say which with --prediction"):
        stated_prediction(checkpoint(**metadata))


@pytest.mark.parametrize("generation", ["v1", "v1.5", "v2"])
def test_predict_blank_is_the_unet_without_sketch_and_reference(generation):
    network = small_network(small_config(generation))
    x, t = torch.randn(2, 4, 8, 16), torch.tensor([3.0, 900.0])
    hints = network.control_encoder(torch.full((2, 3, 64, 128), -1.0))
    want = network.unet(x, t, hints, torch.zeros(2, 4, 64))
    torch.testing.assert_close(predict_blank(network, x, t), want, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(predict_blank(network, x, t.flip(0)), want, atol=1e-2)

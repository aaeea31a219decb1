"""Networks and checkpoints of the smallest kind."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saishiki.models.animediffusion import AnimeDiffusion, AnimeDiffusionConfig
from saishiki.runtime.schedule import linear_betas

State = dict[str, Tensor]


def small_config(**changes: object) -> AnimeDiffusionConfig:
    """One level, one block; base 64, because with groups of one channel the norms would cancel the time."""
    values = asdict(AnimeDiffusionConfig(7, 3, 64, 1, (1,), 4, False, 1000))
    return AnimeDiffusionConfig(**(values | changes))


def random_network(config: AnimeDiffusionConfig, seed: int = 0) -> AnimeDiffusion:
    """The network with every tensor random, norm gains and the schedule's tables too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = AnimeDiffusion(config)
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.data = torch.randn_like(parameter) * 0.3 + (1.0 if name.endswith("weight") else 0.0)
    network.set_schedule(torch.from_numpy(linear_betas(config.timesteps, 1e-6, 1e-2)))
    return network.eval()


@pytest.fixture(scope="session")
def small_network() -> AnimeDiffusion:
    return random_network(small_config())


@pytest.fixture
def small_state(small_network: AnimeDiffusion) -> State:
    """A copy of the small network's state, to be changed at will."""
    return {key: tensor.clone() for key, tensor in small_network.state_dict().items()}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes a state as .safetensors; ``config`` goes into the metadata as JSON, where it is given."""

    def save(state: State, name: str = "model.safetensors", config: object = None) -> Path:
        path = tmp_path / name
        save_file(state, path, metadata=None if config is None else {"config": json.dumps(config)})
        return path

    return save

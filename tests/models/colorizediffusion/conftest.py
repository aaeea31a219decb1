"""Checkpoints of small networks, and those that must be refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from saishiki.models import Checkpoint, CheckpointError, LoadOptions, read_checkpoint
from saishiki.models.colorizediffusion import ColorizeDiffusionConfig
from saishiki.models.colorizediffusion.loading import load
from tests.models.colorizediffusion.small import save, stated_by


@pytest.fixture
def checkpoint_of(tmp_path: Path) -> Callable[..., Checkpoint]:
    """Writes a state, and opens it as a checkpoint; with the metadata of its config, where that is given."""

    def write(
        state: dict[str, Tensor],
        config: ColorizeDiffusionConfig | None = None,
        metadata: dict[str, str] | None = None,
        name: str = "model.safetensors",
    ) -> Checkpoint:
        stated = metadata if config is None else stated_by(config) | (metadata or {})
        return read_checkpoint(save(tmp_path / name, state, stated))

    return write


@pytest.fixture
def refused() -> Callable[..., str]:
    """Loads a checkpoint that must be refused with such a message, and gives the message."""

    def message(checkpoint: Checkpoint, match: str, options: LoadOptions | None = None) -> str:
        with pytest.raises(CheckpointError, match=match) as caught:
            load(checkpoint, options or LoadOptions())
        return str(caught.value)

    return message

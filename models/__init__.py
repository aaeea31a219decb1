"""Reference networks in plain PyTorch, and reading checkpoints into them."""

from saishiki.models.checkpoints import Checkpoint, CheckpointError, read_checkpoint
from saishiki.models.families import FAMILIES, recognize
from saishiki.models.family import Family, LoadedModel, LoadOptions

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "CheckpointError",
    "Family",
    "LoadOptions",
    "LoadedModel",
    "read_checkpoint",
    "recognize",
]

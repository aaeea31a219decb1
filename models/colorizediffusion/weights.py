"""Which tensors of which file make up a network: the checkpoint's own, and the image encoder's.

Published checkpoints leave the image encoder out, training leaves more in than is used. What is done about either is
said in words, as notices for the user.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from saishiki.models.checkpoints import Checkpoint, CheckpointError, first_five, read_checkpoint
from saishiki.models.colorizediffusion.dimensions import IMAGE_TOWER
from saishiki.models.stored_tensors import StoredTensor, StoredTensors

IMAGE_ENCODER = "OpenCLIP ViT-H-14 laion2b_s32b_b79k"
UNUSED = {"model_ema.": "a moving average of the U-Net's weights", "cond_stage_model.transformer.": "a text encoder"}
TOWER_PREFIXES = (IMAGE_TOWER, "visual.model.", "visual.", "")
"""What the names of the image tower begin with, in a file that was saved from one module or another."""


@dataclass(frozen=True)
class NetworkWeights:
    """The tensors of a network, under the published names of :class:`ColorizeDiffusion`.

    Args:
        own: what the checkpoint holds, without the image encoder and without what nothing uses.
        image_encoder: the image encoder's, from the checkpoint or a file of its own; None where there is none.
        notices: what was left out, taken from elsewhere or missing, in words.
    """

    own: Checkpoint
    image_encoder: Checkpoint | None
    notices: tuple[str, ...]

    @property
    def joined(self) -> Checkpoint:
        """All of them, with the checkpoint's path, digest and metadata."""
        parts = (self.own,) if self.image_encoder is None else (self.own, self.image_encoder)
        return replace(self.own, tensors=StoredTensors({k: v for part in parts for k, v in entries(part).items()}))


def network_weights(checkpoint: Checkpoint, image_encoder: Path | None) -> NetworkWeights:
    """What of a checkpoint, and of a file with an image encoder, makes up the network.

    Raises ``FileNotFoundError``, or ``CheckpointError`` where the file holds no image encoder.
    """
    given = entries(checkpoint)
    unused = {prefix: what for prefix, what in UNUSED.items() if any(key.startswith(prefix) for key in given)}
    used = {key: entry for key, entry in given.items() if not key.startswith(tuple(unused))}
    tower = {key: entry for key, entry in used.items() if key.startswith(IMAGE_TOWER)}
    own = replace(checkpoint, tensors=StoredTensors({key: used[key] for key in used.keys() - tower.keys()}))
    inside = replace(checkpoint, tensors=StoredTensors(tower)) if tower else None
    return NetworkWeights(
        own=own,
        image_encoder=inside if image_encoder is None else read_image_encoder(image_encoder),
        notices=(
            *(f"the checkpoint also holds {what} ({prefix}*), which nothing uses" for prefix, what in unused.items()),
            _about_the_image_encoder(inside is not None, image_encoder),
        ),
    )


def read_image_encoder(path: Path) -> Checkpoint:
    """The image tower in a file that open_clip, or a training script, saved; the text tower beside it is left out.

    Raises ``FileNotFoundError``, or ``CheckpointError`` where there is none.
    """
    file = read_checkpoint(path)
    given = entries(file)
    prefix = next((prefix for prefix in TOWER_PREFIXES if f"{prefix}class_embedding" in given), None)
    if prefix is None:
        raise CheckpointError(
            f"{path}: holds no image encoder in open_clip's names (visual.class_embedding and so on); its tensors are "
            f"{first_five(given)}: give {IMAGE_ENCODER} as open_clip saves it"
        )
    tower = {IMAGE_TOWER + key.removeprefix(prefix): entry for key, entry in given.items() if key.startswith(prefix)}
    return replace(file, tensors=StoredTensors(tower))


def entries(checkpoint: Checkpoint) -> Mapping[str, StoredTensor]:
    """The checkpoint's tensors, none of them read."""
    tensors = checkpoint.tensors
    if isinstance(tensors, StoredTensors):
        return tensors.entries
    return {key: _in_memory(tensor) for key, tensor in tensors.items()}


def _in_memory(tensor: Tensor) -> StoredTensor:
    return StoredTensor(tensor.to("meta"), lambda: tensor)


def _about_the_image_encoder(is_inside: bool, file: Path | None) -> str:
    if file is not None:
        instead = ", not the one in the checkpoint" if is_inside else ""
        return f"the image encoder is the one in {file}{instead}"
    if is_inside:
        return "the image encoder is the one in the checkpoint"
    return (
        "neither the checkpoint nor a file of its own holds the image encoder: without it sketches are coloured "
        f"without a reference only; give {IMAGE_ENCODER} with --image-encoder"
    )

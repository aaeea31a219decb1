"""Inferring a ColorizeDiffusion config from a checkpoint, and loading it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from saishiki.models.checkpoints import Checkpoint, CheckpointError, Shapes, check_fit, load_strictly
from saishiki.models.colorizediffusion import dimensions
from saishiki.models.colorizediffusion.config import CONFIGS, ColorizeDiffusionConfig, ImageEncoderConfig
from saishiki.models.colorizediffusion.network import ColorizeDiffusion
from saishiki.models.colorizediffusion.recognition import Recognised, recognise
from saishiki.models.colorizediffusion.stated import stated_number, stated_width
from saishiki.models.colorizediffusion.weights import NetworkWeights, network_weights
from saishiki.models.family import LoadOptions
from saishiki.models.streaming import stream_strictly


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights, and what there is to say about them.

    Args:
        image_encoder: what the image encoder's weights are from, the checkpoint or a file of its own; None without.
        notices: what was recognised, left out and assumed, in words.
    """

    network: ColorizeDiffusion
    image_encoder: Checkpoint | None
    notices: tuple[str, ...]


def load(checkpoint: Checkpoint, options: LoadOptions, *, stream: bool = False) -> LoadedNetwork:
    """The network with the checkpoint's weights, fp32, in eval mode.

    Args:
        stream: leave the weights in the file until they are needed; see :mod:`saishiki.models.streaming`.

    Raises ``CheckpointError`` naming what does not fit, and ``FileNotFoundError`` for a missing ``image_encoder``.
    """
    weights = network_weights(checkpoint, options.image_encoder)
    found = recognise(weights.own)
    config = infer_config(weights, found, options)
    # On the meta device nothing is allocated for what a file merely claims to hold.
    with torch.device("meta"):
        network = ColorizeDiffusion(config, image_encoder=weights.image_encoder is not None)
    with _named_as(found):
        check_parts_fit(weights, network)
        (stream_strictly if stream else load_strictly)(network, weights.joined)
    notices = (str(found), *weights.notices, *assumptions(weights, options, config))
    return LoadedNetwork(network.eval(), weights.image_encoder, notices)


def config_from_checkpoint(checkpoint: Checkpoint, options: LoadOptions) -> ColorizeDiffusionConfig:
    """The config that a checkpoint's shapes and metadata and the options reveal; raises as :func:`load` does."""
    weights = network_weights(checkpoint, options.image_encoder)
    return infer_config(weights, recognise(weights.own), options)


def infer_config(weights: NetworkWeights, found: Recognised, options: LoadOptions) -> ColorizeDiffusionConfig:
    """The config that shapes, metadata and options reveal.

    Not in the shapes are the widths of attention heads and the autoencoder's scale: they are the option, else what the
    metadata states (``num_head_channels``, ``head_width`` in ``clip``, ``vae_scale_factor``), else the published ones.
    Raises ``CheckpointError``.
    """
    own, published = weights.own, CONFIGS[found.generation]
    shapes = own.shapes
    stated_heads = stated_width(own, "num_head_channels") if options.head_channels is None else options.head_channels
    scale = stated_number(own, "vae_scale_factor") or published.vae.scale_factor
    tower = _image_encoder_config(weights, published.image_encoder)
    with _described_by(own.path, found):
        config = ColorizeDiffusionConfig(
            generation=found.generation,
            model_channels=dimensions.model_channels(shapes),
            channel_mult=dimensions.channel_mult(shapes),
            num_res_blocks=dimensions.BLOCKS_PER_LEVEL,
            head_channels=published.head_channels if stated_heads is None else stated_heads,
            context_dim=dimensions.context_dim(shapes),
            vae=dimensions.vae(shapes, scale),
            image_encoder=tower,
            timesteps=shapes["betas"][0],
            **_of_generation(shapes, published, (tower.image_size // tower.patch_size) ** 2),
        )
        _check_heads(config)
    _check_image_encoder(config, weights)
    return config


def _of_generation(shapes: Shapes, published: ColorizeDiffusionConfig, patches: int) -> dict[str, Any]:
    """The fields that not every generation has; without any LoRA the published ranks, for strict loading to miss."""
    clustered, styled, has_lora = published.generation == "v1.5", published.generation == "v2", published.lora_fg
    return {
        "tokens": shapes["transformer.embedding"][0] if clustered else patches,
        "lora_fg": (dimensions.lora_rank(shapes, "fg") or published.lora_fg) if has_lora else None,
        "lora_bg": (dimensions.lora_rank(shapes, "bg") or published.lora_bg) if has_lora else None,
        "cluster_layers": dimensions.cluster_layers(shapes) if clustered else None,
        "threshold_width": shapes["thresh_embedder.embed_layer.0.weight"][1] if clustered else None,
        "size_width": dimensions.size_width(shapes) if styled else None,
        "warp_widths": dimensions.warp_widths(shapes) if styled else None,
    }


def _image_encoder_config(weights: NetworkWeights, published: ImageEncoderConfig) -> ImageEncoderConfig:
    file = weights.image_encoder
    if file is None:
        return published
    head_width = stated_head_width(weights) or published.head_width
    with _described_by(file.path, "taken for an image encoder of open_clip"):
        return dimensions.image_encoder(file.shapes, head_width)


def stated_head_width(weights: NetworkWeights) -> int | None:
    """Of the image encoder, in the metadata of its file or of the checkpoint."""
    files = (weights.own,) if weights.image_encoder is None else (weights.image_encoder, weights.own)
    return next((width for file in files if (width := stated_width(file, "clip", "head_width"))), None)


def _check_heads(config: ColorizeDiffusionConfig) -> None:
    if config.head_channels < 1 or any(width % config.head_channels for width in config.widths):
        raise ValueError(
            f"attention heads {config.head_channels} wide do not divide its levels' widths {list(config.widths)}; say "
            "how wide they were in training: --head-channels"
        )


def _check_image_encoder(config: ColorizeDiffusionConfig, weights: NetworkWeights) -> None:
    """Raises ``CheckpointError`` where the image encoder is not the one that the U-Net was trained with."""
    file, tower = weights.image_encoder, config.image_encoder
    patches = (tower.image_size // tower.patch_size) ** 2
    if file is not None and (tower.embed_dim, patches) != (config.context_dim, config.tokens):
        raise CheckpointError(
            f"{file.path}: its image encoder gives {patches} tokens {tower.embed_dim} wide, but {weights.own.path} was "
            f"trained with {config.tokens}, {config.context_dim} wide: give the image encoder that it was trained with"
        )


def check_parts_fit(weights: NetworkWeights, network: ColorizeDiffusion) -> None:
    """Raises ``CheckpointError`` with the path of the image encoder's file where that is what does not fit."""
    if weights.image_encoder is not None:
        state = network.state_dict()
        tower = {key: tensor for key, tensor in state.items() if key.startswith(dimensions.IMAGE_TOWER)}
        check_fit(weights.image_encoder, tower)


def assumptions(weights: NetworkWeights, options: LoadOptions, config: ColorizeDiffusionConfig) -> tuple[str, ...]:
    """What was taken from the published configuration because nothing says it, in words."""
    notices = []
    if options.head_channels is None and stated_width(weights.own, "num_head_channels") is None:
        notices.append(
            "the checkpoint does not say how wide the U-Net's attention heads are; assuming the published "
            f"{config.head_channels} (say otherwise with --head-channels)"
        )
    if weights.image_encoder is not None and stated_head_width(weights) is None:
        notices.append(
            "no file says how wide the attention heads of the image encoder are; assuming the published "
            f"{config.image_encoder.head_width}"
        )
    if stated_number(weights.own, "vae_scale_factor") is None:
        notices.append(
            f"the checkpoint does not say how its latents are scaled; assuming the published {config.vae.scale_factor}"
        )
    return tuple(notices)


@contextmanager
def _described_by(path: object, found: object) -> Iterator[None]:
    """Turns what :mod:`dimensions` raises into a ``CheckpointError`` about this file."""
    try:
        yield
    except (KeyError, IndexError, ValueError) as error:
        why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path}: {found}, but its tensors do not describe one ({why}); is the checkpoint complete?"
        ) from error


@contextmanager
def _named_as(found: Recognised) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error} ({found})") from error

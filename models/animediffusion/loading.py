"""Recognising an AnimeDiffusion checkpoint, inferring its config from its shapes, and loading it."""

import json

import torch

from saishiki.models.animediffusion.network import (
    GROUPS,
    PUBLISHED_ATTENTION_HEAD,
    AnimeDiffusion,
    AnimeDiffusionConfig,
)
from saishiki.models.checkpoints import Checkpoint, CheckpointError, Shapes, load_strictly, matching_numbers

FAMILY = "animediffusion"


def matches(shapes: Shapes) -> bool:
    """Whether a checkpoint with these shapes is an AnimeDiffusion one."""
    return {"gammas", "denoise_fn.input.0.weight", "denoise_fn.time_embedding.0.weight"} <= shapes.keys()


def config_from_checkpoint(checkpoint: Checkpoint, *, attention_head: int | None) -> AnimeDiffusionConfig:
    """The config that the shapes reveal.

    The number of attention heads is not in the shapes: it is the argument, else what :func:`stated_heads` finds, else
    the published 4.
    """
    shapes = checkpoint.shapes
    stated = stated_heads(checkpoint) if attention_head is None else attention_head
    try:
        base, channel_in, *_ = shapes["denoise_fn.input.0.weight"]
        mult, n_res_blocks = _encoder_plan(shapes, base)
        config = AnimeDiffusionConfig(
            channel_in=channel_in,
            channel_out=shapes["denoise_fn.output.2.weight"][0],
            channel_base=base,
            n_res_blocks=n_res_blocks,
            channel_mult=mult,
            attention_head=PUBLISHED_ATTENTION_HEAD if stated is None else stated,
            cbam=any(".channel_attention." in key for key in shapes),
            timesteps=shapes["gammas"][0],
        )
    except KeyError as error:
        raise _no_unet(checkpoint, f"{error.args[0]} is missing") from error
    except (IndexError, ValueError) as error:
        raise _no_unet(checkpoint, str(error)) from error
    _check_heads(checkpoint, config)
    return config


def _no_unet(checkpoint: Checkpoint, why: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path}: recognised as {FAMILY}, but its tensors do not describe a U-Net ({why}); "
        "is the checkpoint complete?"
    )


def _encoder_plan(shapes: Shapes, base: int) -> tuple[tuple[int, ...], int]:
    """channel_mult and n_res_blocks, from the residual blocks' numbers: a gap in them is a pooling step."""
    numbers = matching_numbers(shapes.keys(), "denoise_fn.encoder_block.")
    levels: list[list[int]] = []
    for number in numbers:
        if levels and levels[-1][-1] == number - 1:
            levels[-1].append(number)
        else:
            levels.append([number])
    if not levels or len({len(level) for level in levels}) != 1:
        raise ValueError(f"encoder blocks numbered {numbers}: expected equally many per level, one number apart")
    widths = [shapes[f"denoise_fn.encoder_block.{level[0]}.conv2.3.weight"][0] for level in levels]
    if base < 1 or base % GROUPS or any(width < 1 or width % base for width in widths):
        raise ValueError(
            f"base width {base} and level widths {widths}: expected multiples of {GROUPS}, and of the base width"
        )
    return tuple(width // base for width in widths), len(levels[0])


def stated_heads(checkpoint: Checkpoint) -> int | None:
    """The number of attention heads that the file's metadata states (``config``, JSON), or None where it does not.

    Raises ``CheckpointError`` where it states something that is not a number of heads.
    """
    try:
        heads = json.loads(checkpoint.metadata.get("config", "{}"))["unet"]["attention_head"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(heads, int) or isinstance(heads, bool):
        raise CheckpointError(
            f"{checkpoint.path}: its metadata states {heads!r} as attention_head, expected a whole number; "
            "say how many with --attention-heads"
        )
    return heads


def _check_heads(checkpoint: Checkpoint, config: AnimeDiffusionConfig) -> None:
    width = config.channel_base * config.channel_mult[-1]
    if config.attention_head < 1 or width % config.attention_head:
        raise CheckpointError(
            f"{checkpoint.path}: {config.attention_head} attention heads do not divide the bottleneck's {width} "
            "channels; say how many it was trained with: --attention-heads"
        )


def load(checkpoint: Checkpoint, config: AnimeDiffusionConfig) -> AnimeDiffusion:
    """The network with the checkpoint's weights, fp32, in eval mode.

    Raises ``CheckpointError`` naming the keys that do not fit.
    """
    # On the meta device nothing is allocated for what a file merely claims to hold.
    with torch.device("meta"):
        network = AnimeDiffusion(config)
    load_strictly(network, checkpoint)
    return network.eval()

"""Launches of the two halves of a group norm, by the kernels of ``saishiki.kernels.group_norm_silu``."""

import math
from dataclasses import dataclass

from saishiki.runtime.backends.group_norm_tiles import (
    APPLY_TILES,
    STATISTICS_CHANNELS,
    count_chunks,
    count_pixel_blocks,
    split_channels,
)
from saishiki.runtime.backends.launches.launch import Address, Launch
from saishiki.runtime.errors import BackendError
from saishiki.runtime.plan.extents import Extents
from saishiki.runtime.plan.ops import NormApply, NormInput, NormStatistics

UNIT = 16
"""What the shipped kernels need the channels of x and of u to be multiples of."""
TICKETS, PARTIALS = "tickets", "partials"
"""Workspaces: int32 that are 0 between launches, and fp32 that need not be cleared."""


@dataclass(frozen=True)
class _Sizes:
    """Of what is normalised: pictures, pixels of x and of u, width of x, channels of x and of u."""

    batch: int
    pixels: int
    out_pixels: int
    width: int
    channels_x: int
    channels: int

    @classmethod
    def of(cls, u: NormInput, extents: Extents) -> "_Sizes":
        """Raises ``BackendError`` for channels that no shipped kernel takes."""
        batch, *spatial, channels_x = extents.shape(u.x)
        channels = channels_x + (extents.shape(u.concat)[-1] if u.concat else 0)
        if channels_x % UNIT or channels % UNIT:
            raise BackendError(
                f"no kernel normalises {channels} channels of which {channels_x} are of {u.x}: expected multiples of "
                f"{UNIT}; use another backend"
            )
        pixels = math.prod(spatial)
        return cls(batch, pixels, pixels * (4 if u.upsample else 1), spatial[-1], channels_x, channels)


def statistics_launches(op: NormStatistics, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch. Raises ``BackendError`` for channels that no shipped kernel takes."""
    sizes = _Sizes.of(op.input, extents)
    split = split_channels(sizes.channels, op.groups)
    chunks = count_chunks(sizes.out_pixels, blocks=sizes.batch * split.blocks, sms=sms)
    arguments = {
        **_operands(op.input, sizes, address),
        "partials_ptr": address(PARTIALS),
        "tickets_ptr": address(TICKETS),
        "statistics_ptr": address(op.out),
        "groups": op.groups,
        "channel_blocks": split.blocks,
        "slices": split.slices,
        "chunks": chunks,
        "eps": op.epsilon,
    }
    return (Launch(f"group_norm_silu_statistics_{_variant(op.input)}nhwc_fp16", arguments),)


def workspaces(op: NormStatistics, extents: Extents, sms: int) -> dict[str, int]:
    """The bytes of the workspaces by name."""
    sizes = _Sizes.of(op.input, extents)
    split = split_channels(sizes.channels, op.groups)
    chunks = count_chunks(sizes.out_pixels, blocks=sizes.batch * split.blocks, sms=sms)
    rows = sizes.batch * split.blocks * chunks
    return {PARTIALS: rows * 2 * STATISTICS_CHANNELS * 4, TICKETS: sizes.batch * split.sets * 4}


def apply_launches(op: NormApply, extents: Extents, address: Address, sms: int) -> tuple[Launch, ...]:
    """One launch. Raises ``BackendError`` for channels that no shipped kernel takes."""
    sizes, groups = _Sizes.of(op.input, extents), extents.shape(op.statistics)[1]
    block_pixels, block_channels = APPLY_TILES[True]
    channel_blocks = -(-sizes.channels // block_channels)
    pixel_blocks = count_pixel_blocks(
        sizes.out_pixels, block_pixels=block_pixels, blocks=channel_blocks * sizes.batch, sms=sms
    )
    arguments = {
        **_operands(op.input, sizes, address),
        "statistics_ptr": address(op.statistics),
        "weight_ptr": address(op.weight),
        "bias_ptr": address(op.bias),
        "out_ptr": address(op.out),
        "input_ptr": address(op.dense) if op.dense else 0,
        "groups": groups,
        "channel_blocks": channel_blocks,
        "pixel_blocks": pixel_blocks,
        "eps": 0.0,  # already in the statistics
    }
    dense = "input_" if op.dense else ""
    silu = "" if op.silu else "no_silu_"
    return (Launch(f"group_norm_silu_apply_{silu}{_variant(op.input)}{dense}nhwc_fp16", arguments),)


def _operands(u: NormInput, sizes: _Sizes, address: Address) -> dict[str, int]:
    return {
        "x_ptr": address(u.x),
        "concat_ptr": address(u.concat) if u.concat else 0,
        "residual_ptr": address(u.residual) if u.residual else 0,
        "embedding_ptr": 0,
        "batch": sizes.batch,
        "pixels": sizes.pixels,
        "channels": sizes.channels,
        "channels_x": sizes.channels_x,
        "width": sizes.width,
    }


def _variant(u: NormInput) -> str:
    return "".join(
        f"{name}_" for name, used in (("concat", u.concat), ("upsample", u.upsample), ("residual", u.residual)) if used
    )

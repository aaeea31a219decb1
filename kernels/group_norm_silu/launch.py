"""The two launches of ``group_norm_silu``, on tensors that are known to fit."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from saishiki.kernels.checks import INTERPRETED
from saishiki.kernels.group_norm_silu.apply_kernel import _apply_kernel
from saishiki.kernels.group_norm_silu.statistics_kernel import _statistics_kernel
from saishiki.runtime.backends.group_norm_tiles import (
    APPLY_TILES,
    PIXEL_UNIT,
    SMS_INTERPRETED,
    STATISTICS_CHANNELS,
    STATISTICS_PIXELS,
    STATISTICS_ROWS,
    STATISTICS_STAGES,
    Split,
    count_chunks,
    count_pixel_blocks,
    split_channels,
)

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True)
class Input:
    """What is normalised, before it is put together: ``(nearest2x(x) | concat) + residual + embedding``."""

    x: Tensor
    concat: Tensor | None
    upsample: bool
    residual: Tensor | None
    embedding: Tensor | None

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(B, C, H', W')."""
        batch, channels, height, width = self.x.shape
        channels += 0 if self.concat is None else self.concat.shape[1]
        scale = 2 if self.upsample else 1
        return batch, channels, scale * height, scale * width

    @property
    def out_pixels(self) -> int:
        """Of one image."""
        return self.out_shape[2] * self.out_shape[3]

    @property
    def repeats(self) -> bool:
        """Whether u is a small image with every pixel four times, which changes neither mean nor variance."""
        return self.upsample and self.concat is None and self.residual is None

    @property
    def layouts(self) -> tuple[torch.memory_format, ...]:
        """The memory formats that all images are dense in; both, where the shapes leave it open."""
        images = [image for image in (self.x, self.concat, self.residual) if image is not None]
        return tuple(layout for layout in LAYOUTS if all(image.is_contiguous(memory_format=layout) for image in images))

    def new_output(self) -> Tensor:
        """Memory for a tensor of u's shape, in the layout of the images."""
        return torch.empty(self.out_shape, dtype=self.x.dtype, device=self.x.device, memory_format=self.layouts[0])


@dataclass(frozen=True)
class Workspace:
    """What the statistics kernel writes to. The tickets are 0 before and after every launch."""

    partials: Tensor
    tickets: Tensor
    statistics: Tensor


def new_workspace(x: Tensor, split: Split, chunks: int, groups: int) -> Workspace:
    """Memory for one launch, or for any number of launches one after the other."""
    rows = x.shape[0] * split.blocks * chunks
    return Workspace(
        partials=torch.empty((rows, 2, STATISTICS_CHANNELS), dtype=torch.float32, device=x.device),
        tickets=torch.zeros((x.shape[0] * split.sets,), dtype=torch.int32, device=x.device),
        statistics=torch.empty((x.shape[0], groups, 2), dtype=torch.float32, device=x.device),
    )


def plan_chunks(u: Input, split: Split) -> int:
    """The chunks of pixels that fill the GPU x is on."""
    pixels = u.out_pixels // 4 if u.repeats else u.out_pixels
    return count_chunks(pixels, blocks=u.x.shape[0] * split.blocks, sms=_multiprocessors(u.x))


def _multiprocessors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else SMS_INTERPRETED


def compute_statistics(
    u: Input, groups: int, eps: float, *, chunks: int | None = None, workspace: Workspace | None = None
) -> Tensor:
    """(B, groups, 2) fp32: mean and 1 / sqrt(variance + eps) of u."""
    batch, channels = u.out_shape[:2]
    split = split_channels(channels, groups)
    chunks = plan_chunks(u, split) if chunks is None else chunks
    workspace = new_workspace(u.x, split, chunks, groups) if workspace is None else workspace
    _statistics_kernel[(split.blocks * chunks * batch,)](
        u.x,
        u.concat,
        u.residual,
        u.embedding,
        workspace.partials,
        workspace.tickets,
        workspace.statistics,
        batch,
        u.x.shape[2] * u.x.shape[3],
        channels,
        u.x.shape[1],
        u.x.shape[3],
        groups,
        split.blocks,
        split.slices,
        chunks,
        eps,
        HAS_CONCAT=u.concat is not None,
        UPSAMPLE=u.upsample and not u.repeats,
        HAS_RESIDUAL=u.residual is not None,
        HAS_EMBEDDING=u.embedding is not None,
        CHANNELS_LAST=u.layouts[0] == torch.channels_last,
        PIXEL_UNIT=PIXEL_UNIT,
        BLOCK_P=STATISTICS_PIXELS,
        BLOCK_C=STATISTICS_CHANNELS,
        BLOCK_ROWS=STATISTICS_ROWS,
        STAGES=STATISTICS_STAGES,
    )
    return workspace.statistics


def apply(
    u: Input,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool,
    from_sums: bool,
    return_input: bool,
) -> list[Tensor]:
    """The normalised u, then u itself where it is asked for.

    Args:
        statistics: (B, groups, 2), or with ``from_sums`` the (B, C, 2) sums.
    """
    channels_last = u.layouts[0] == torch.channels_last
    block_p, block_c = APPLY_TILES[channels_last]
    batch, channels = u.out_shape[:2]
    channel_blocks = triton.cdiv(channels, block_c)
    pixel_blocks = count_pixel_blocks(
        u.out_pixels, block_pixels=block_p, blocks=channel_blocks * batch, sms=_multiprocessors(u.x)
    )
    out = u.new_output()
    dense_input = u.new_output() if return_input else None
    _apply_kernel[(channel_blocks * pixel_blocks * batch,)](
        u.x,
        u.concat,
        u.residual,
        u.embedding,
        statistics,
        weight,
        bias,
        out,
        dense_input,
        batch,
        u.x.shape[2] * u.x.shape[3],
        channels,
        u.x.shape[1],
        u.x.shape[3],
        groups,
        channel_blocks,
        pixel_blocks,
        eps,
        HAS_CONCAT=u.concat is not None,
        UPSAMPLE=u.upsample,
        HAS_RESIDUAL=u.residual is not None,
        HAS_EMBEDDING=u.embedding is not None,
        FROM_SUMS=from_sums,
        RETURN_INPUT=return_input,
        SILU=silu,
        CHANNELS_LAST=channels_last,
        IN_FP32=INTERPRETED and u.x.dtype == torch.bfloat16,
        PIXEL_UNIT=PIXEL_UNIT,
        BLOCK_P=block_p,
        BLOCK_C=block_c,
    )
    return [out] if dense_input is None else [out, dense_input]

"""Mean and 1 / sqrt(variance + eps) of every group of u, in one launch that reads u once.

How: each program takes a block of channels, wherever groups begin and end. It runs Welford's recurrence at every
position of its tile, merges the positions of a channel and then the channels of a group, writes mean and M2 of what it
has of each group of its set, and draws a ticket of that set. Who draws the last one finds the partials of all blocks
and chunks written: a barrier orders a program's own stores before its ticket, and acquire and release order the
tickets. It merges them after Chan et al. in the order of their places, so that the result does not depend on who is
last.

A launch without torch: the grid is ``channel_blocks * chunks * batch``.

- u: ``channels`` is C, ``channels_x`` the number of x's own, ``pixels`` H W and ``width`` W of x, also where UPSAMPLE
  is on; concat and residual are then of the large size. With neither of them an upsampled x has the statistics of the
  small image: a variant without UPSAMPLE serves. Pointers that a variant does not use may be null.
- ``split_channels`` in ``runtime/backends/group_norm_tiles.py`` gives ``channel_blocks`` and ``slices``, the blocks of
  a set; ``chunks`` may be any number from 1, ``count_chunks`` gives one that fills the GPU.
- ``partials_ptr``: workspace of ``batch * channel_blocks * chunks * 2 * BLOCK_C`` fp32; need not be cleared.
- ``tickets_ptr``: ``batch * ceil(channel_blocks / slices)`` int32, 0 before the first launch; every launch leaves them
  0, so a CUDA graph may replay on the same ones. Launches that may overlap need workspaces of their own.
- ``statistics_ptr``: (B, groups, 2) fp32, written: mean, 1 / sqrt(variance + eps).
"""

# ruff: noqa: N803

import triton
import triton.language as tl

from saishiki.kernels.group_norm_silu.input_tile import load_embedding, load_input


@triton.jit
def _merge_rows(count, mean, m2):  # type: ignore[no-untyped-def]
    """Count, mean and M2 per column, of [R, N] or, count and mean alike in a column, [R, 1] and [R, N] parts.

    The mean is summed twice, the second time as what is left of it: a large mean would lose its last digits in a sum.
    """
    total = tl.sum(count, 0)
    share = count / tl.maximum(total, 1.0)[None, :]
    first = tl.sum(share * mean, 0)
    merged = first + tl.sum(share * (mean - first[None, :]), 0)
    away = mean - merged[None, :]
    return total, merged, tl.sum(m2 + count * away * away, 0)


@triton.jit
def _merge_channels(count, mean, m2, group, first_group):  # type: ignore[no-untyped-def]
    """[N] count, mean and M2 of the N groups from ``first_group`` on, of N channels of groups ``group``; -1: none."""
    wanted = first_group + tl.arange(0, group.shape[0])
    mine = group[:, None] == wanted[None, :]
    return _merge_rows(
        tl.where(mine, count[:, None], 0.0), tl.where(mine, mean[:, None], 0.0), tl.where(mine, m2[:, None], 0.0)
    )


@triton.jit  # type: ignore[untyped-decorator]
def _finish_set(  # type: ignore[no-untyped-def]
    partials_ptr,
    statistics_ptr,
    first_block,
    rows,
    chunks,
    channels,
    groups,
    out_pixels,
    pixels_per_chunk,
    eps,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merges the partials of one set, ``rows`` rows of means and M2s, and writes the statistics of its groups."""
    group_width = channels // groups
    column = tl.arange(0, BLOCK_C)  # [BLOCK_C], a group of the set each
    g = first_block * BLOCK_C // group_width + column
    count = tl.zeros([BLOCK_ROWS, BLOCK_C], tl.float32)
    mean = tl.zeros([BLOCK_ROWS, BLOCK_C], tl.float32)
    m2 = tl.zeros([BLOCK_ROWS, BLOCK_C], tl.float32)
    for start in tl.range(0, rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)  # [BLOCK_ROWS]
        counted = tl.minimum(out_pixels - row % chunks * pixels_per_chunk, pixels_per_chunk)
        counted = tl.where(row < rows, tl.maximum(counted, 0), 0)
        c = (first_block + row // chunks) * BLOCK_C  # of which on the row's block has
        begin = tl.maximum(c[:, None], (g * group_width)[None, :])
        end = tl.minimum((c + BLOCK_C)[:, None], ((g + 1) * group_width)[None, :])
        # As floats: a group of many channels has more numbers than an int32 can count.
        more = counted.to(tl.float32)[:, None] * tl.maximum(end - begin, 0).to(tl.float32)  # [BLOCK_ROWS, BLOCK_C]
        offsets = row[:, None] * (2 * BLOCK_C) + column[None, :]
        # Past the first-level cache, which is not coherent. Groups of which a row has nothing are loaded too, for the
        # sake of wide loads.
        written = (row < rows)[:, None]
        more_mean = tl.load(partials_ptr + offsets, mask=written, other=0.0, cache_modifier=".cg")
        more_m2 = tl.load(partials_ptr + offsets + BLOCK_C, mask=written, other=0.0, cache_modifier=".cg")
        total = count + more
        # What comes first is taken whole: a quotient that is 1 but for rounding would cost the mean its last digits.
        share = tl.where(count > 0, more / tl.maximum(total, 1.0), 1.0)
        delta = more_mean - mean
        mean += delta * share
        m2 += more_m2 + delta * delta * count * share
        count = total
    group_count, group_mean, group_m2 = _merge_rows(count, mean, m2)  # [BLOCK_C]
    rstd = tl.div_rn(1.0, tl.sqrt_rn(group_m2 / tl.maximum(group_count, 1.0) + eps))
    real = (group_count > 0) & (g < groups)
    tl.store(statistics_ptr + g * 2, group_mean, mask=real)
    tl.store(statistics_ptr + g * 2 + 1, rstd, mask=real)


# Ints that are not strides make no kernels of their own by being 1 or a multiple of 16.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["batch", "width", "groups", "channel_blocks", "slices", "chunks"]
)
def _statistics_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    concat_ptr,
    residual_ptr,
    embedding_ptr,
    partials_ptr,
    tickets_ptr,
    statistics_ptr,
    batch,
    pixels,
    channels,
    channels_x,
    width,
    groups,
    channel_blocks,
    slices,
    chunks,
    eps,
    HAS_CONCAT: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_EMBEDDING: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    PIXEL_UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    block = tl.program_id(0) % channel_blocks
    chunk = tl.program_id(0) // channel_blocks % chunks
    b = tl.program_id(0) // channel_blocks // chunks
    column = tl.arange(0, BLOCK_C)  # [BLOCK_C]
    c = block * BLOCK_C + column

    out_pixels = pixels
    if UPSAMPLE:
        out_pixels = pixels * 4
    pixels_per_chunk = tl.cdiv(out_pixels, chunks * PIXEL_UNIT) * PIXEL_UNIT
    p_end = tl.minimum((chunk + 1) * pixels_per_chunk, out_pixels)
    embedding = load_embedding(embedding_ptr, b, c, channels, HAS_EMBEDDING)
    count = tl.zeros([BLOCK_P], tl.float32)
    mean = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    m2 = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for tile in tl.range(0, tl.cdiv(pixels_per_chunk, BLOCK_P), num_stages=STAGES):
        p = chunk * pixels_per_chunk + tile * BLOCK_P + tl.arange(0, BLOCK_P)  # [BLOCK_P]
        valid = p < p_end
        inside = valid[:, None] & (c < channels)[None, :]
        u = load_input(
            x_ptr,
            concat_ptr,
            residual_ptr,
            embedding,
            b,
            p,
            c,
            inside,
            pixels,
            channels,
            channels_x,
            width,
            HAS_CONCAT,
            UPSAMPLE,
            HAS_RESIDUAL,
            CHANNELS_LAST,
        )
        # Welford at every position: a new number moves the mean by 1 / n of its distance. Once p has left the chunk,
        # nothing moves. The first weight must be 1 and no less, hence the exact division.
        weight = tl.where(valid, tl.div_rn(1.0, tile + 1.0), 0.0)
        kept = tl.where(valid, 1.0 - weight, 0.0)
        delta = u - mean
        mean += delta * weight[:, None]
        m2 += delta * kept[:, None] * delta
        count += tl.where(valid, 1.0, 0.0)

    group_set = block // slices
    first_block = group_set * slices
    group_width = channels // groups
    group = tl.where(c < channels, c // group_width, -1)
    pixel_count, channel_mean, channel_m2 = _merge_rows(count[:, None], mean, m2)  # [1], [BLOCK_C], [BLOCK_C]
    _, group_mean, group_m2 = _merge_channels(
        pixel_count, channel_mean, channel_m2, group, first_block * BLOCK_C // group_width
    )
    partial_ptr = partials_ptr + ((b.to(tl.int64) * channel_blocks + block) * chunks + chunk) * (2 * BLOCK_C)
    tl.store(partial_ptr + column, group_mean)
    tl.store(partial_ptr + BLOCK_C + column, group_m2)

    # All of this program's stores, then its ticket.
    tl.debug_barrier()
    ticket_ptr = tickets_ptr + b.to(tl.int64) * tl.cdiv(channel_blocks, slices) + group_set
    rows = tl.minimum(slices, channel_blocks - first_block) * chunks
    if tl.atomic_add(ticket_ptr, 1, sem="acq_rel") == rows - 1:
        tl.store(ticket_ptr, 0)
        _finish_set(
            partials_ptr + (b.to(tl.int64) * channel_blocks + first_block) * chunks * (2 * BLOCK_C),
            statistics_ptr + b.to(tl.int64) * groups * 2,
            first_block,
            rows,
            chunks,
            channels,
            groups,
            out_pixels,
            pixels_per_chunk,
            eps,
            BLOCK_ROWS,
            BLOCK_C,
        )

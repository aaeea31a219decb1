"""What both kernels of ``group_norm_silu`` read: a tile of u, put together on the way in.

u is what is normalised: nearest 2x of x, with concat behind it, plus residual, plus embedding. x alone is of the small
size. Every image is dense in one layout, NHWC or NCHW.
"""

# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def image_offsets(b, p, c, pixels, channels, CHANNELS_LAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BLOCK_P, BLOCK_C] int64: where channel c of pixel p of image b lies."""
    b = b.to(tl.int64)
    if CHANNELS_LAST:
        offsets = (b * pixels + p)[:, None] * channels + c[None, :]
    else:
        offsets = (b * channels + c)[None, :] * pixels + p[:, None]
    return offsets


@triton.jit  # type: ignore[untyped-decorator]
def load_input(  # type: ignore[no-untyped-def]
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
    HAS_CONCAT: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """[BLOCK_P, BLOCK_C] fp32: u at pixels p, of the output, and channels c; 0 plus the embedding outside."""
    out_pixels = pixels
    source = p
    if UPSAMPLE:
        out_pixels = pixels * 4
        source = p // (4 * width) * width + p % (2 * width) // 2
    x_offsets = image_offsets(b, source, c, pixels, channels_x, CHANNELS_LAST)
    if HAS_CONCAT:
        own = (c < channels_x)[None, :]
        u = tl.load(x_ptr + x_offsets, mask=inside & own, other=0.0).to(tl.float32)
        concat_offsets = image_offsets(b, p, c - channels_x, out_pixels, channels - channels_x, CHANNELS_LAST)
        theirs = (c >= channels_x)[None, :]
        u += tl.load(concat_ptr + concat_offsets, mask=inside & theirs, other=0.0).to(tl.float32)
    else:
        u = tl.load(x_ptr + x_offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual_offsets = image_offsets(b, p, c, out_pixels, channels, CHANNELS_LAST)
        u += tl.load(residual_ptr + residual_offsets, mask=inside, other=0.0).to(tl.float32)
    return u + embedding[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def load_embedding(embedding_ptr, b, c, channels, HAS_EMBEDDING: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BLOCK_C] fp32, 0 where there is none."""
    embedding = tl.zeros_like(c).to(tl.float32)
    if HAS_EMBEDDING:
        offsets = b.to(tl.int64) * channels + c
        embedding = tl.load(embedding_ptr + offsets, mask=c < channels, other=0.0).to(tl.float32)
    return embedding

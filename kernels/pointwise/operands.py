"""Where the numbers of an operand lie, and reading and writing them, inside the kernel."""

# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def along(rest, length):  # type: ignore[no-untyped-def]
    """[BLOCK] place along the innermost axis that is left, and the number of the row that it lies in."""
    place = tl.zeros_like(rest)
    if length > 1:
        place = rest % length
        rest = rest // length
    return place, rest


@triton.jit
def offsets(p_0, p_1, p_2, p_3, p_4, s_0, s_1, s_2, s_3, s_4):  # type: ignore[no-untyped-def]
    """[BLOCK] int64, by place and stride along each axis."""
    outer = p_0.to(tl.int64) * s_0 + p_1.to(tl.int64) * s_1 + p_2.to(tl.int64) * s_2
    return outer + p_3.to(tl.int64) * s_3 + p_4.to(tl.int64) * s_4


@triton.jit
def _only(inside, kind, wanted):  # type: ignore[no-untyped-def]
    """``inside & (kind == wanted)``, whose type Triton's interpreter gets wrong."""
    return tl.where(kind == wanted, inside, False)


@triton.jit  # type: ignore[untyped-decorator]
def load_halves(ptr, kind, offsets, inside, UNIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BLOCK, UNIT] of an operand that is fp16, else zeros, asked for of no thread."""
    places = offsets[:, None] * UNIT + tl.arange(0, UNIT)[None, :]
    return tl.load(ptr.to(tl.pointer_type(tl.float16)) + places, mask=_only(inside, kind, 0)[:, None], other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def widened(halves, ptr, kind, offsets, inside, UNIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BLOCK, UNIT] fp32: these, or the numbers of an operand of another kind."""
    x = halves.to(tl.float32)
    single_ptr = ptr.to(tl.pointer_type(tl.float32))
    if kind == 1:
        places = offsets[:, None] * UNIT + tl.arange(0, UNIT)[None, :]
        x = tl.load(single_ptr + places, mask=inside[:, None], other=0.0)
    if UNIT > 1 and kind >= 2:
        half = tl.load(ptr.to(tl.pointer_type(tl.float16)) + offsets, mask=_only(inside, kind, 2), other=0.0)
        single = tl.load(single_ptr + offsets, mask=_only(inside, kind, 3), other=0.0)
        one = tl.where(kind == 3, single, half.to(tl.float32))  # [BLOCK]
        x = tl.zeros_like(x) + one[:, None]
    return x


@triton.jit  # type: ignore[untyped-decorator]
def store(ptr, kind, offsets, inside, y, UNIT: tl.constexpr):  # type: ignore[no-untyped-def]
    places = offsets[:, None] * UNIT + tl.arange(0, UNIT)[None, :]
    if kind == 0:
        tl.store(ptr.to(tl.pointer_type(tl.float16)) + places, y.to(tl.float16), mask=inside[:, None])
    else:
        tl.store(ptr.to(tl.pointer_type(tl.float32)) + places, y, mask=inside[:, None])

"""What is computed number by number, and copies: ``out = function(a, b, c, d)`` in fp32, rounded once.

::

    1 operand   copy, silu, sigmoid, gelu (exact), sin, cos
    2           add, sub, mul, div, gated_gelu = a * gelu(b)
    3           clip = min(max(a, b), c), modulate = a * (1 + b) + c
    4           select_above = c where a > b, else d

Layout: fp16 or fp32, out and each operand by itself, at any strides of up to five axes; a stride of 0 repeats. A copy
thus casts, transposes, repeats and joins, and a copy of nothing writes zeros. A program takes BLOCK units of UNIT
numbers that lie side by side: 8, where everything does, so that 16 bytes are read at a time, else 1. Divisions of the
unit's number by lengths are left out for axes of length 1, which the caller puts in front.

A launch without torch: :func:`saishiki.runtime.backends.launches.elementwise.elementwise_launch`.

- ``units``: of out; ``length_1`` to ``length_4`` of the axes behind the first, the last in units.
- ``<name>_kind``: 0 fp16, 1 fp32; 2 and 3 the same, but one number for a whole unit; 4 absent, read as zeros.
- ``<name>_stride_0`` to ``_4``: in units, but in numbers where there is one for a whole unit.

Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415; Shazeer, arXiv 2002.05202 for the gate.
"""

# ruff: noqa: N803

import triton
import triton.language as tl

from saishiki.kernels.pointwise.functions import of_one, of_three, of_two
from saishiki.kernels.pointwise.operands import along, load_halves, offsets, store, widened
from saishiki.runtime.backends.launches.elementwise import AXES, NAMES

ARGUMENTS = tuple(
    f"{name}_{of}" for name in NAMES for of in ("ptr", "kind", *(f"stride_{axis}" for axis in range(AXES)))
)
SIZES = ("function", "units", *(f"length_{axis}" for axis in range(1, AXES)))


# No int makes kernels of its own by being 1 or a multiple of 16.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[name for name in (*ARGUMENTS, *SIZES) if not name.endswith("_ptr")]
)
def _pointwise_kernel(  # type: ignore[no-untyped-def]
    out_ptr,
    out_kind,
    out_stride_0,
    out_stride_1,
    out_stride_2,
    out_stride_3,
    out_stride_4,
    a_ptr,
    a_kind,
    a_stride_0,
    a_stride_1,
    a_stride_2,
    a_stride_3,
    a_stride_4,
    b_ptr,
    b_kind,
    b_stride_0,
    b_stride_1,
    b_stride_2,
    b_stride_3,
    b_stride_4,
    c_ptr,
    c_kind,
    c_stride_0,
    c_stride_1,
    c_stride_2,
    c_stride_3,
    c_stride_4,
    d_ptr,
    d_kind,
    d_stride_0,
    d_stride_1,
    d_stride_2,
    d_stride_3,
    d_stride_4,
    function,
    units,
    length_1,
    length_2,
    length_3,
    length_4,
    OPERANDS: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = unit < units
    p_4, rest = along(unit, length_4)
    p_3, rest = along(rest, length_3)
    p_2, rest = along(rest, length_2)
    p_1, p_0 = along(rest, length_1)
    # All fp16 operands are asked for before the first is waited for.
    # fmt: off
    at_a = offsets(p_0, p_1, p_2, p_3, p_4, a_stride_0, a_stride_1, a_stride_2, a_stride_3, a_stride_4)
    a = load_halves(a_ptr, a_kind, at_a, inside, UNIT)
    if OPERANDS > 1:
        at_b = offsets(p_0, p_1, p_2, p_3, p_4, b_stride_0, b_stride_1, b_stride_2, b_stride_3, b_stride_4)
        b = load_halves(b_ptr, b_kind, at_b, inside, UNIT)
    if OPERANDS > 2:
        at_c = offsets(p_0, p_1, p_2, p_3, p_4, c_stride_0, c_stride_1, c_stride_2, c_stride_3, c_stride_4)
        c = load_halves(c_ptr, c_kind, at_c, inside, UNIT)
    if OPERANDS > 3:
        at_d = offsets(p_0, p_1, p_2, p_3, p_4, d_stride_0, d_stride_1, d_stride_2, d_stride_3, d_stride_4)
        d = load_halves(d_ptr, d_kind, at_d, inside, UNIT)
    at = offsets(
        p_0, p_1, p_2, p_3, p_4, out_stride_0, out_stride_1, out_stride_2, out_stride_3, out_stride_4
    )
    # fmt: on
    a = widened(a, a_ptr, a_kind, at_a, inside, UNIT)
    if OPERANDS > 1:
        b = widened(b, b_ptr, b_kind, at_b, inside, UNIT)
    if OPERANDS > 2:
        c = widened(c, c_ptr, c_kind, at_c, inside, UNIT)
    if OPERANDS > 3:
        d = widened(d, d_ptr, d_kind, at_d, inside, UNIT)
    if OPERANDS == 1:
        y = of_one(function, a)
    elif OPERANDS == 2:
        y = of_two(function, a, b)
    elif OPERANDS == 3:
        y = of_three(function, a, b, c)
    else:
        y = tl.where(a > b, c, d)  # select_above
    store(out_ptr, out_kind, at, inside, y, UNIT)

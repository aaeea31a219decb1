"""What is computed of one, two or three operands, inside the kernel; by number, in the order of the runtime's names.

The names are :data:`saishiki.runtime.backends.launches.elementwise.FUNCTIONS`.
"""

import triton
import triton.language as tl


@triton.jit
def _gelu(x):  # type: ignore[no-untyped-def]
    return x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _sine(x, shift):  # type: ignore[no-untyped-def]
    """sin(x + shift * pi), by its series to the eleventh power, which is far shorter than a library's.

    ``x + shift * pi`` is ``turns * pi`` and the rest r, from -pi/2 to pi/2; pi is taken off in two parts, the first of
    them exactly.
    """
    turns = tl.floor(x * 0.3183098861837907 + (shift + 0.5))
    taken = turns - shift
    r = x - taken * 3.140625 - taken * 0.0009676535897932385
    s = r * r
    series = 2.7557319223985893e-06 - s * 2.505210838544172e-08
    series = 0.008333333333333333 - s * (0.0001984126984126984 - s * series)
    series = r - r * s * (0.16666666666666666 - s * series)
    odd = turns - 2.0 * tl.floor(turns * 0.5)
    return series * (1.0 - 2.0 * odd)


@triton.jit
def of_one(function, a):  # type: ignore[no-untyped-def]
    y = a  # copy
    if function == 1:  # silu
        y = a * tl.sigmoid(a)
    elif function == 2:  # sigmoid
        y = tl.sigmoid(a)
    elif function == 3:  # gelu
        y = _gelu(a)
    elif function == 4:  # sin
        y = _sine(a, 0.0)
    elif function == 5:  # cos
        y = _sine(a, 0.5)
    return y


@triton.jit
def of_two(function, a, b):  # type: ignore[no-untyped-def]
    y = a + b  # add
    if function == 1:  # sub
        y = a - b
    elif function == 2:  # mul
        y = a * b
    elif function == 3:  # div
        y = tl.div_rn(a, b)
    elif function == 4:  # gated_gelu
        y = a * _gelu(b)
    return y


@triton.jit
def of_three(function, a, b, c):  # type: ignore[no-untyped-def]
    y = a * (1.0 + b) + c  # modulate
    if function == 0:  # clip; a NaN stays one
        y = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
        y = tl.minimum(y, c, propagate_nan=tl.PropagateNan.ALL)
    return y

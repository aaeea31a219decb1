"""What is computed of one, two or three operands, inside the kernel; by number, in the order of the runtime's names.

The names are :data:`saishiki.runtime.backends.launches.elementwise.FUNCTIONS`.
"""

import triton
import triton.language as tl


@triton.jit
def _gelu(x):  # type: ignore[no-untyped-def]
    return x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def of_one(function, a):  # type: ignore[no-untyped-def]
    y = a  # copy
    if function == 1:  # silu
        y = a * tl.sigmoid(a)
    elif function == 2:  # sigmoid
        y = tl.sigmoid(a)
    elif function == 3:  # gelu
        y = _gelu(a)
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

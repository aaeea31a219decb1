"""From an operation of a plan to what cuDNN computes of it, and where its operands lie."""

from collections.abc import Callable, Mapping, Set

from saishiki.runtime.backends.cudnn.attention import Attention, Strides
from saishiki.runtime.backends.cudnn.convolution import Convolution
from saishiki.runtime.backends.cudnn.layout import HALF_BYTES
from saishiki.runtime.backends.cudnn.matmul import Matmul
from saishiki.runtime.backends.cudnn.operation import Operation
from saishiki.runtime.plan import ops
from saishiki.runtime.plan.extents import Extents, Strided, resolve

_EIGHT = 8  # halves in 16 bytes, at multiples of which tensors begin


def operation_from_op(op: ops.Op, extents: Extents, *, equal_vectors: Set[str] = frozenset()) -> Operation | None:
    """What cuDNN computes of an operation; None where it has no kernel for it, and another backend runs it.

    It has none for fp32 images of the interface, for rows with gaps, and for a hoisted vector per image.

    Args:
        equal_vectors: hoisted vectors whose rows are all the same, so that the first stands for all.
    """
    if not all(extents.of[name].dtype == "float16" for name in (*op.reads(), *op.writes())):
        return None
    match op:
        case ops.Convolution():
            return _convolution(op, extents, equal_vectors)
        case ops.Matmul():
            return _matmul(op, extents)
        case ops.Attention():
            return _attention(op, extents)
    return None


def addresses_from_op(op: ops.Op, extents: Extents, address: Callable[[str], int], *, zeros: str) -> dict[str, int]:
    """Where the operands of an operation lie that :func:`operation_from_op` accepts, by cuDNN's names for them.

    Args:
        address: of a tensor of the plan.
        zeros: the name of one that is all zeros and as long as any bias, for layers that have none.

    Raises ``TypeError`` for an operation that cuDNN never computes.
    """

    def part(strided: Strided) -> int:
        return address(strided.buffer) + resolve(strided.offset, extents.sizes) * HALF_BYTES

    match op:
        case ops.Convolution():
            bias = address(op.bias) + op.bias_offset * HALF_BYTES
            at = {"x": address(op.x[0]), "w": address(op.weight), "bias": bias}
            return at | ({"residual": address(op.residual)} if op.residual else {}) | {"y": address(op.out)}
        case ops.Matmul():
            at = {"x": part(op.x), "w": address(op.weight), "bias": address(op.bias or zeros)}
            return at | ({"residual": part(op.residual)} if op.residual else {}) | {"y": part(op.out)}
        case ops.Attention():
            return {"q": part(op.q), "k": part(op.k), "v": part(op.v), "y": address(op.out)}
    raise TypeError(f"cuDNN computes no {type(op).__name__}")


def _convolution(op: ops.Convolution, extents: Extents, equal_vectors: Set[str]) -> Convolution | None:
    if op.from_images or op.to_image or op.norm or op.bias_offset % _EIGHT:
        return None
    vectors = extents.shape(op.bias)[:-1]
    if vectors not in ((), (1,)) and op.bias not in equal_vectors:
        return None
    filters, rows, columns, channels = extents.shape(op.weight)
    batch, height, width, own = extents.shape(op.x[0])
    if own != channels or channels % _EIGHT or filters % _EIGHT:
        return None
    return Convolution(
        batch, height, width, channels, filters, (rows, columns), op.stride, op.padding, op.residual is not None
    )


def _matmul(op: ops.Matmul, extents: Extents) -> Matmul | None:
    parts = (op.x, op.out, *([op.residual] if op.residual else []))
    if not all(_is_dense(part, extents) for part in parts):
        return None
    rows, channels = extents.strided_shape(op.x)
    filters = extents.shape(op.weight)[0]
    if channels % _EIGHT or filters % _EIGHT:
        return None
    return Matmul(rows, channels, filters, op.residual is not None)


def _is_dense(part: Strided, extents: Extents) -> bool:
    rows, channels = extents.strided_shape(part)
    row, element = (resolve(stride, extents.sizes) for stride in part.strides)
    return element == 1 and (rows == 1 or row == channels) and resolve(part.offset, extents.sizes) % _EIGHT == 0


def _attention(op: ops.Attention, extents: Extents) -> Attention | None:
    batch, heads, queries, head_dim = extents.strided_shape(op.q)
    keys = extents.strided_shape(op.k)[2]
    strides: Mapping[str, Strides | None] = {
        "query_strides": _strides(op.q, extents),
        "key_strides": _strides(op.k, extents),
        "value_strides": _strides(op.v, extents),
    }
    if None in strides.values() or head_dim % _EIGHT or extents.strided_shape(op.v)[3] != head_dim:
        return None
    return Attention(batch, heads, queries, keys, head_dim, op.scale, **strides)


def _strides(part: Strided, extents: Extents) -> Strides | None:
    """Those of image, head and token; None for what cuDNN does not take."""
    *strides, element = (resolve(stride, extents.sizes) for stride in part.strides)
    places = (*strides, resolve(part.offset, extents.sizes))
    if element != 1 or min(strides) < _EIGHT or any(place % _EIGHT for place in places):
        return None
    image, head, token = strides
    return image, head, token
